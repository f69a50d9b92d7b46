"""One process, one device: the sum over one worker is its input."""

import atexit
from collections.abc import Sequence

import tensorflow as tf

from distgrad.accumulate import Totals
from distgrad.communicators import Communicator, joined
from distgrad.communicators.window import InWindow, Window, Windowed
from distgrad.layout import Layout
from distgrad.world import World


class Solo(Communicator):
    """A world of one, on any device."""

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        return tf.identity(joined(pieces))

    def part(self) -> None:
        atexit._run_exitfuncs()  # nobody waits here, so what the script registered may take its time

    def abort(self, status: int) -> None:
        self.part()


class SoloOnCpu(Windowed, Solo):
    """A world of one whose gradient the core divides and describes in one pass."""

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        super().__init__(rank, size, local_rank, local_size)
        self.window = Window(size, self._fail, self.page.address)

    def totals(self, layout: Layout, riders: int, describes: bool = False, candidates: Sequence[int] = ()) -> Totals:
        # Tensors of the graph cost less than a copy into the window, unless one would be a whole table.
        if not candidates:
            return super().totals(layout, riders, describes)
        return InWindow(self.window, layout, riders, describes, candidates=candidates, exchange=self.exchange)

    def close(self) -> None:
        super().close()
        self.window.close()


def connect(world: World, timeout: float) -> Solo:
    """Run alone, whatever the launcher says."""
    kind = Solo if tf.config.list_logical_devices("GPU") else SoloOnCpu  # a gradient stays on its GPU
    return kind(rank=0, size=1, local_rank=0, local_size=1)
