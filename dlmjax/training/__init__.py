"""Building blocks of `train.py`: optimizer, state and step, checkpoints, metrics, interruption. Independent of the loss."""

from dlmjax.cluster.interrupt import Interrupt
from dlmjax.training.checkpoint import Checkpoints
from dlmjax.training.goodput import Goodput
from dlmjax.training.metrics import TIMING, BadStep, MetricsWriter, Summary, Window, read
from dlmjax.training.optimizer import Hyperparameters, OptimizerSpec, build_optimizer, hyperparameters_of, learning_rate
from dlmjax.training.progress import Throughput, TrainingProgress
from dlmjax.training.step import TrainStep, abstract_state, clear_stop, init_state, make_train_step

__all__ = [
    "TIMING",
    "BadStep",
    "Checkpoints",
    "Goodput",
    "Hyperparameters",
    "Interrupt",
    "MetricsWriter",
    "OptimizerSpec",
    "TrainingProgress",
    "Summary",
    "Throughput",
    "TrainStep",
    "Window",
    "abstract_state",
    "build_optimizer",
    "clear_stop",
    "hyperparameters_of",
    "init_state",
    "learning_rate",
    "make_train_step",
    "read",
]
