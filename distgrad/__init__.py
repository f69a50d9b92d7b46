"""The right global gradient sum for TensorFlow and Keras 3, over MPI, Horovod, tf.distribute or alone.

Names are imported when they are first used, so that `import distgrad` is instant and loads no engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

from distgrad.connect import connect

if TYPE_CHECKING:
    from distgrad.checkpoint import Checkpoint
    from distgrad.collectives.communicator import Communicator
    from distgrad.errors import DistgradError
    from distgrad.fit import distribute
    from distgrad.fit.callbacks import WarmUp
    from distgrad.gradients.all_reduce_gradients import ReducedGradients, all_reduce_gradients
    from distgrad.gradients.micro_batch import GradientSum
    from distgrad.gradients.sum_gradients import sum_gradients
    from distgrad.reports.report import StepReport
    from distgrad.step import DistributedStep

__all__ = [
    "Checkpoint",
    "Communicator",
    "DistgradError",
    "DistributedStep",
    "GradientSum",
    "ReducedGradients",
    "StepReport",
    "WarmUp",
    "all_reduce_gradients",
    "connect",
    "distribute",
    "sum_gradients",
]
__version__ = "0.1.0"

_MODULES = {
    "Checkpoint": "checkpoint",
    "Communicator": "collectives.communicator",
    "DistgradError": "errors",
    "DistributedStep": "step",
    "GradientSum": "gradients.micro_batch",
    "ReducedGradients": "gradients.all_reduce_gradients",
    "StepReport": "reports.report",
    "WarmUp": "fit.callbacks",
    "all_reduce_gradients": "gradients.all_reduce_gradients",
    "distribute": "fit",
    "sum_gradients": "gradients.sum_gradients",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'distgrad' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distgrad.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
