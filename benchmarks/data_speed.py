"""Speed of preparing a corpus from text, and of loading batches from it.

python benchmarks/data_speed.py                                  # on English that ships with CPython (its words shuffled)
python benchmarks/data_speed.py --input FILES --gpt2 DIR         # on your text; DIR holds vocab.json + merges.txt

Preparing is measured in MB of UTF-8 text per second, loading in tokens per second of one process, with the shards dropped from the
page cache first ("from disk") and again when they are in it ("cached"). Prints one Markdown table.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from dlmjax.data.corpus import Corpus
from dlmjax.data.formats import builtin_documents
from dlmjax.data.prepare import prepare
from dlmjax.data.windows import EvalWindows, TrainWindows

FIRST = """
import time; begin = time.perf_counter()
from dlmjax.data import Corpus, TrainWindows, train_batches
imported = time.perf_counter()
next(train_batches(TrainWindows([Corpus.open({directory!r})], None, 1024, 8, 0, {packing!r}), range(8), 0))
print(imported - begin, time.perf_counter() - imported)
"""


def make_text(megabytes: float) -> str:
    """CPython's help topics with their words in random order: a text of natural words that does not repeat."""
    words = " ".join(builtin_documents()).split(" ")
    rng, parts, size = random.Random(0), [], 0
    while size < megabytes * 1e6:
        rng.shuffle(words)
        parts.append(" ".join(words))
        size += len(parts[-1].encode())
    return "\n".join(parts)


def drop_from_cache(directory: pathlib.Path) -> None:
    for path in directory.glob("*.array_record"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare_row(label: str, inputs: list[str], tokenizer: str, output: pathlib.Path, documents: str) -> str:
    begin, before = time.perf_counter(), sum(os.times()[:4])
    found = prepare(inputs, tokenizer, output, documents=documents, progress=False)
    seconds, cpu = time.perf_counter() - begin, sum(os.times()[:4]) - before
    counts = found.counts("train")
    megabytes = counts["text_bytes"] / 1e6
    return f"| prepare, {label} | {megabytes / seconds:.1f} MB/s | {counts['documents']:,} documents; {cpu / megabytes:.3f} CPU s/MB |"


def first_row(label: str, directory: pathlib.Path, packing: str) -> str:
    drop_from_cache(directory)
    code = FIRST.format(directory=str(directory), packing=packing)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return f"| first batch, {label}, {packing} | {float(out[1]):.2f} s | new process, after {float(out[0]):.1f} s of imports |"


def load_row(label: str, directory: pathlib.Path, packing: str, seconds: float) -> str:
    from dlmjax.data.loader import train_batches

    windows = TrainWindows([Corpus.open(directory)], None, 1024, 8, 0, packing)
    speeds = []
    for cold in (True, False):
        if cold:
            drop_from_cache(directory)
        batches = train_batches(windows, range(8), 0 if cold else 1000)
        tokens, begin, before = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            tokens += next(batches)["tokens"].size
        speeds.append(tokens / (time.perf_counter() - begin) / 1e6)
        cpu = tokens / (time.process_time() - before) / 1e6
    return (
        f"| train windows, {label}, {packing} | {speeds[0]:.1f} M tokens/s | from disk; cached {speeds[1]:.1f}, {cpu:.0f} M a CPU second |"
    )


def eval_row(label: str, directory: pathlib.Path, seconds: float) -> str:
    from dlmjax.data.loader import eval_batches

    evals = EvalWindows(Corpus.open(directory), 1024)
    tokens, begin = 0, time.perf_counter()
    for batch in eval_batches(evals, 8):
        tokens += batch["tokens"].size
        if time.perf_counter() - begin > seconds:
            break
    return f"| held-out windows, {label} | {tokens / (time.perf_counter() - begin) / 1e6:.1f} M tokens/s | cached |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", help="text files; default: English from CPython's help")
    parser.add_argument("--gpt2", help="directory with vocab.json + merges.txt; without it BPE is not measured")
    parser.add_argument("--megabytes", type=float, default=64, help="megabytes of text to generate without --input")
    parser.add_argument("--seconds", type=float, default=3, help="seconds of loading for each row")
    values = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores\n\n| what | speed | remarks |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        inputs = values.input
        if not inputs:
            (folder / "text.txt").write_text(make_text(values.megabytes))
            inputs = [str(folder / "text.txt")]
        print(prepare_row("bytes", inputs, "bytes", folder / "bytes", "file"), flush=True)
        print(prepare_row("char27", inputs, "char27", folder / "char27", "file"), flush=True)
        if values.gpt2:
            print(prepare_row("GPT-2 BPE", inputs, f"gpt2:{values.gpt2}", folder / "gpt2", "file"), flush=True)
        (folder / "large.jsonl").write_text("".join(_json_lines(values.megabytes, 1_000_000)))
        (folder / "tiny.jsonl").write_text("".join(_json_lines(values.megabytes, 60)))
        print(prepare_row("bytes, 1 MB documents in jsonl", [str(folder / "large.jsonl")], "bytes", folder / "large", "file"), flush=True)
        print(prepare_row("bytes, 60 B documents in jsonl", [str(folder / "tiny.jsonl")], "bytes", folder / "tiny", "file"), flush=True)
        for label, name in (("1 MB documents", "large"), ("60 B documents", "tiny")):
            for packing in ("concat", "documents"):
                print(first_row(label, folder / name, packing), flush=True)
                print(load_row(label, folder / name, packing, values.seconds), flush=True)
            print(eval_row(label, folder / name, values.seconds), flush=True)


def _json_lines(megabytes: float, size: int) -> list[str]:
    import json

    text = make_text(megabytes)
    return [json.dumps({"text": text[at : at + size]}) + "\n" for at in range(0, len(text), size)]


if __name__ == "__main__":
    main()
