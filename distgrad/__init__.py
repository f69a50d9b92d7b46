"""The right global gradient sum for TensorFlow and Keras 3, over MPI, Horovod, tf.distribute or alone.

Names are imported when they are first used, so that `import distgrad` is instant and loads no engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distgrad.callbacks import WarmUp
    from distgrad.checkpoint import Checkpoint
    from distgrad.communicators import Communicator
    from distgrad.errors import DistgradError
    from distgrad.fit import distribute
    from distgrad.gradient import GradientSum
    from distgrad.join import connect
    from distgrad.report import StepReport
    from distgrad.step import DistributedStep
    from distgrad.sums import sum_gradients

__all__ = [
    "Checkpoint",
    "Communicator",
    "DistgradError",
    "DistributedStep",
    "GradientSum",
    "StepReport",
    "WarmUp",
    "connect",
    "distribute",
    "sum_gradients",
]
__version__ = "0.1.0"

_ROOMS = {
    "Checkpoint": "checkpoint",
    "Communicator": "communicators",
    "DistgradError": "errors",
    "DistributedStep": "step",
    "GradientSum": "gradient",
    "StepReport": "report",
    "WarmUp": "callbacks",
    "connect": "join",
    "distribute": "fit",
    "sum_gradients": "sums",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'distgrad' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distgrad.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
