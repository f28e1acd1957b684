"""The one list of tokenizers that `--tokenizer` takes, and the formats of `--format`: help, messages and docs/data.md agree with them.

Imports nothing."""

TRAINED = "train-sentencepiece"
# spec -> what it is; the specs of `load_tokenizer`, and the one that `prepare` trains.
TOKENIZERS = {
    "bytes": "the 256 bytes, no file",
    "char27": "text8's 27 letters, no file; cleans the text",
    f"{TRAINED}:VOCAB": "BPE, trained on the train split with VOCAB ids; `prepare` alone",
    "sentencepiece:FILE": "a .model, BPE or unigram, with byte fallback",
    "hf:FILE": "a tokenizer.json, byte-level BPE, or BPE or unigram with byte fallback",
    "gpt2:DIR": "vocab.json + merges.txt, byte-level BPE",
    "wordpiece:FILE": "a tokenizer.json, BERT's WordPiece; cleans the text",
    "saved:DIR": "that of a prepared corpus or of a run",
}
SPECS = "; ".join(f"{spec} ({what})" for spec, what in TOKENIZERS.items())
NAMES = ", ".join(TOKENIZERS)
FROM_FILE = tuple(spec.partition(":")[0] for spec in TOKENIZERS if ":" in spec)
SUPERVISED = ("chat", "prompt-answer", "spans")  # formats of .jsonl whose records say what is given and what is scored
FORMATS = ("txt", "jsonl", "parquet", *SUPERVISED)
