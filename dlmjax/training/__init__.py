"""The parts that `train.py` is told with: optimizer, state and step, checkpoints, metrics, interruption. Knows no loss family."""

from dlmjax.cluster.interrupt import Interrupt
from dlmjax.training.checkpoint import Checkpoints
from dlmjax.training.goodput import Goodput
from dlmjax.training.metrics import TIMING, BadStep, MetricsWriter, Summary, Window, read
from dlmjax.training.optimizer import Numbers, OptimizerSpec, build_optimizer, learning_rate, numbers_of
from dlmjax.training.progress import Progress, Throughput, peak_flops
from dlmjax.training.step import TrainStep, abstract_state, clear_stop, init_state, make_train_step

__all__ = [
    "TIMING",
    "BadStep",
    "Checkpoints",
    "Goodput",
    "Interrupt",
    "MetricsWriter",
    "Numbers",
    "OptimizerSpec",
    "Progress",
    "Summary",
    "Throughput",
    "TrainStep",
    "Window",
    "abstract_state",
    "build_optimizer",
    "clear_stop",
    "init_state",
    "learning_rate",
    "make_train_step",
    "numbers_of",
    "peak_flops",
    "read",
]
