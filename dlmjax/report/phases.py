"""What a run was trained on, phase by phase: those of `process.before`, then the process itself with the parts of its own curriculum."""

import dataclasses

from dlmjax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class TrainedPhase:
    """A phase as far as it was trained. process: its text in the config, with the size of blocks where a curriculum changes it.
    start, end: steps, the last one not part of it.  tokens: read.  flops: of their training, multiply and add counted as two.
    """

    process: str
    start: int
    end: int
    tokens: int
    flops: float

    def cells(self) -> tuple[str, str, str, str]:
        """Of a table: process, steps, tokens, FLOPs."""
        return self.process, f"{self.start:,} to {self.end:,}", f"{self.tokens:,}", f"{self.flops:.3g}"


HEAD = ("phase", "steps", "tokens", "training FLOPs")


def trained_phases(experiment: Experiment, step: int) -> list[TrainedPhase]:
    """The phases that a run has begun in its first `step` steps, in their order."""
    experiment = experiment.trained or experiment
    config, ends = experiment.config, experiment.phases.ends
    texts = [str(entry).rpartition("@")[0] for entry in config.process.before]
    found = []
    for i, (start, end) in enumerate(zip((0, *ends), (*ends, max(step, experiment.phases.end)), strict=True)):
        if start >= step:
            break
        during, own = experiment.at_step(start), config.process.name
        size = during.process.attention.block_size
        if i >= len(texts) and len(ends) > len(texts) and size:
            own = f"{own}, blocks of {size}"
        tokens = (min(end, step) - start) * config.data.batch * config.data.length
        name = texts[i] if i < len(texts) else own
        found.append(TrainedPhase(name, start, min(end, step), tokens, tokens * during.flops_per_token))
    return found
