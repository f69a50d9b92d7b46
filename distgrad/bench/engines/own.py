"""A rank of a job that has a communicator, and distgrad's turns over it."""

import functools
from typing import Any

import tensorflow as tf

from distgrad.bench import models
from distgrad.bench.data import MICRO_BATCH, MICRO_BATCHES, check, cut, own_part
from distgrad.bench.engines.by_hand import batch, evidence, sgd
from distgrad.bench.worker import Prepared
from distgrad.collectives.communicator import Communicator
from distgrad.step import DistributedStep


class Worker:
    """One rank, by its communicator."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size

    def barrier(self) -> None:
        self._comm.barrier()

    def clear(self) -> None:
        pieces.cache_clear()
        tf.keras.backend.clear_session()


def step(
    comm: Communicator,
    case: str,
    rank: int,
    micro_batches: int = MICRO_BATCHES,
    **options: Any,
) -> Prepared:
    """A whole step, as a user calls it, on tensors that are in memory."""
    with comm.scope():
        model = models.build(case)
        optimizer = sgd(model)
    take = DistributedStep(
        model, models.loss(), optimizer, comm=comm, micro_batch_size=MICRO_BATCH, **{"log_every": 0, **options}
    )
    x, y = batch(case, rank, micro_batches)

    def turn() -> None:
        # As a next step of its own would: else its gradient keeps memory that the others' sums would have for theirs.
        take(x, y).expire()

    return Prepared(turn, evidence(model, turn))


@functools.lru_cache(maxsize=1)
def pieces(case: str, rank: int) -> list[tf.Tensor]:
    """This rank's tensors. All turns of a case read the same: all contestants are in memory at once."""
    return [tf.constant(piece) for piece in cut(case, own_part(case, rank))]


def graph_sum(comm: Communicator, case: str) -> Prepared:
    """A sum inside a TensorFlow graph, tensors in and a tensor out."""
    given = pieces(case, comm.rank)

    def turn() -> tf.Tensor:
        return comm.sum_over_workers(lambda *tensors: list(tensors), given, borrow=True)

    compiled = tf.function(turn, autograph=False)
    check(compiled().numpy(), comm.size)
    return Prepared(compiled)
