"""One process, one device: the sum over one worker is its input."""

import atexit
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.moments import MOMENTS, NONFINITE, merged, moments_of_each
from distgrad.collectives.vectors import DividedSum, Division, Vector, joined
from distgrad.collectives.window import PlacedVector, Window
from distgrad.collectives.windowed import Windowed
from distgrad.launching.world import World
from distgrad.liveness.engine_hooks import EngineHooks


class Solo(Communicator):
    """A world of one, on any device."""

    alone = True

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        return tf.identity(joined(pieces))

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Leave the variables as they are: this process is the root."""

    def _engine_hooks(self) -> EngineHooks:
        # Nobody waits here, so what the script registered may take its time.
        return EngineHooks(self.exchange, _run_exit_functions, abort=lambda _: _run_exit_functions())


def _run_exit_functions() -> None:
    atexit._run_exitfuncs()  # `os._exit`, which follows, would leave them out


class SoloOnCpu(Windowed, Solo):
    """A world of one whose gradient the core divides and describes in one pass."""

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        super().__init__(rank, size, local_rank, local_size)
        self.window = Window(size, self.liveness.fail, self.liveness.page.address)

    def sum_and_divide(
        self, fn: Callable[..., Vector | PlacedVector], args: Sequence[Any], division: Division
    ) -> DividedSum:
        """Leave pieces that nobody divides where they are, and read them once."""
        vector = fn(*args)
        has_undivided = isinstance(vector, list) and vector[-1].shape == [division.undivided]
        if not _divides_by_one(division) or division.ranges or not has_undivided:
            return super().sum_and_divide(lambda: vector, (), division)
        *blocks, undivided = vector
        found = merged(moments_of_each(blocks if division.describe else []))
        return DividedSum(
            blocks=blocks,
            undivided=undivided,
            divisor=tf.ones((), tf.float64),
            moments=found[:MOMENTS],
            nonfinite_workers=tf.minimum(found[NONFINITE : NONFINITE + 1], 1.0),
            by_range=moments_of_each([]),
        )

    def _close_engine(self) -> None:
        self.window.close()


def _divides_by_one(division: Division) -> bool:
    """Return True if the divisor is known to be 1, whatever the sum."""
    terms = tf.get_static_value(division.terms)
    return terms is not None and terms[0] == 1 and not terms[1:].any()


def connect(world: World, timeout: float) -> Solo:
    """Run alone, whatever the launcher says."""
    kind = Solo if tf.config.list_logical_devices("GPU") else SoloOnCpu  # a gradient stays on its GPU
    return kind(rank=0, size=1, local_rank=0, local_size=1)
