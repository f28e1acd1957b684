"""The table of docs/processes.md, printed from the declarations of each process: python -m dlmjax.diffusion.capabilities"""

import jax.numpy as jnp

from dlmjax import choices
from dlmjax.diffusion.process import Process
from dlmjax.diffusion.registry import PROCESSES, make_process, process_fields

# Processes whose capabilities depend on their values.
_VARIANTS = (
    *("d3pm(kernel='gaussian')", "d3pm(kernel='absorbing')", "score(noise='uniform')", "flow_matching(noise='uniform')"),
    *("blocks(noise='uniform')", "blocks(noise='hybrid')", "blocks(seeded=True)"),
)


def make_named(text: str, vocab: int = 29) -> Process:
    """The process of a text like "hybrid(p_uniform=0.2)" over a small vocabulary whose last three ids are special."""
    name, values = choices.parse(text, "process")
    facts = {"vocab": vocab, "mask_id": vocab - 1, "bos_id": vocab - 2, "eos_id": vocab - 2, "excluded": (vocab - 3,)}
    if "counts_V" in process_fields(name):
        facts["counts_V"] = tuple(range(1, vocab + 1))
    return make_process(name, **facts, **values)


def reveal_orders(process: Process) -> str:
    """Which rules of revealed positions sample a process: "all", "left_to_right" or "none"."""
    if process.attention.causal:
        return "left_to_right"
    masks = process.capabilities.prior_mask_id is not None and float(process.replaced(jnp.float32(0))) == 0
    return "all" if masks else "none"


def table() -> str:
    """One row for each process of the registry, as Markdown."""
    lines = [
        "| process | methods (`--method`) | rules (`--rule`) | `process.weighting` | `process.times` |",
        "|---|---|---|---|---|",
    ]
    for text in sorted((*PROCESSES, *_VARIANTS), key=lambda text: [*PROCESSES].index(text.partition("(")[0])):
        process = make_named(text)
        times = "one time per row" if process.time_domain.one_time_per_row else "all"
        cells = (
            ", ".join(process.bound.capabilities.methods),
            reveal_orders(process.bound),
            ", ".join(process.capabilities.weightings),
            times,
        )
        lines.append(f"| `{text}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
