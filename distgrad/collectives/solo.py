"""One process, one device: the sum over one worker is its input."""

import atexit
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.moments import rows, whole
from distgrad.collectives.vectors import DividedSum, Vector, joined
from distgrad.collectives.window import Placed, Window, Windowed
from distgrad.launching.world import World
from distgrad.liveness.engine_hooks import EngineHooks


class Solo(Communicator):
    """A world of one, on any device."""

    alone = True

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        return tf.identity(joined(pieces))

    def broadcast(self, variables: Sequence[Any]) -> None:
        """They are the root's."""

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
        self,
        fn: Callable[..., Vector | Placed],
        args: Sequence[Any],
        rest: int,
        divisor: tf.Tensor,
        describe: bool = True,
        *,
        ranges: Callable[[], Sequence[tuple[int, int]]] = tuple,
    ) -> DividedSum:
        """Pieces that nobody divides stay where they are, and are read once."""
        vector = fn(*args)
        if not _is_one(divisor) or ranges() or not _ends_with(vector, rest):
            return super().sum_and_divide(lambda: vector, (), rest, divisor, describe, ranges=ranges)
        *blocks, undivided = vector
        found = whole(rows(blocks if describe else []))
        vote = tf.minimum(found[3:4], 1.0)
        return DividedSum(blocks, undivided, tf.ones((), tf.float64), found[:4], vote, rows([]))

    def close(self) -> None:
        super().close()
        self.window.close()


def _is_one(divisor: tf.Tensor) -> bool:
    """Whether it is known to be, see `sum_and_divide`."""
    terms = tf.get_static_value(divisor)
    return terms is not None and terms[0] == 1 and not terms[1:].any()


def _ends_with(vector: Any, rest: int) -> bool:
    """Whether it comes in pieces, the last of which is what is not divided."""
    return isinstance(vector, list) and vector[-1].shape == [rest]


def connect(world: World, timeout: float) -> Solo:
    """Run alone, whatever the launcher says."""
    kind = Solo if tf.config.list_logical_devices("GPU") else SoloOnCpu  # a gradient stays on its GPU
    return kind(rank=0, size=1, local_rank=0, local_size=1)
