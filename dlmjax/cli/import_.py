"""`dlmjax import`: a Hugging Face checkpoint -> the workdir of a run."""

import argparse

from dlmjax import flags

HELP = "a Hugging Face checkpoint (safetensors) -> the workdir of a run"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add(
        "--source",
        type=flags.input_folder,
        required=True,
        metavar="DIR",
        help="directory with config.json, model.safetensors or its shards, and the tokenizer's files",
    )
    add("--workdir", type=flags.output_folder, required=True, metavar="DIR", help="directory of the new run; --init trains others from it")
    add(
        "--family",
        metavar="NAME",
        help="family of the tensors' names: llama, mistral, olmo2, qwen2, qwen3, gpt2, bert, roberta, xlm-roberta, llada, dream or sdar; "
        "for a model_type different from config.json's, logits are first compared with those of transformers (by config.json)",
    )
    add("--tokenizer", metavar="SPEC", help="tokenizer, as in `dlmjax prepare` (the source's own files)")
    add("--process", metavar="NAME", help="noise process of the run (the one that the weights were trained under)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="type of activations; weights become float32 (float32)")
    add("--length", type=flags.tokens, metavar="N", help="window, tokens (the longest that the source can read, at most 1024)")


def run(arguments: argparse.Namespace, _) -> None:
    """Imports, prints what was understood and how the run is used."""
    from dlmjax.interop.importer import import_checkpoint

    names = ("source", "workdir", "family", "tokenizer", "process", "dtype", "length")
    found = import_checkpoint(**{name: getattr(arguments, name) for name in names})
    ids, workdir = found["new_ids"], found["workdir"]
    new = f", the rows of {len(ids)} new ids ({', '.join(map(str, ids))}) are the mean of the others" if ids else ""
    if found["compared"]:
        print(found["compared"])
    print(
        f"{found['source']} ({found['layout']}, {' and '.join(found['stored'])}) is imported into {workdir}: "
        f"{found['parameters'] / 1e6:.2f}M weights, {found['vocab']:,} ids, mask {found['mask_id']}{new}\n"
        f"model.family={found['family']}, process {found['process']}\n"
        f"text for it: dlmjax prepare --tokenizer saved:{workdir}/tokenizer ...; weights for others: dlmjax train --init {workdir} ...",
        flush=True,
    )
