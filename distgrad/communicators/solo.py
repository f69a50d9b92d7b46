"""One process, one device: the sum over one worker is its input."""

import tensorflow as tf

from distgrad.communicators import Communicator
from distgrad.world import World


class Solo(Communicator):
    """A world of one."""

    def all_sum(self, flat: tf.Tensor) -> tf.Tensor:
        return tf.identity(flat)


def connect(world: World, timeout: float) -> Solo:
    """Run alone, whatever the launcher says."""
    return Solo(rank=0, size=1, local_rank=0, local_size=1)
