"""distgrad's turns over any communicator: a sum inside a graph, and a whole step."""

import functools
from typing import Any

import tensorflow as tf

from distgrad.bench import models
from distgrad.bench.data import MICRO_BATCH, MICRO_BATCHES, check, split, vector_of_rank
from distgrad.bench.engines.by_hand import batch, evidence, optimizer_of
from distgrad.bench.worker import Prepared
from distgrad.collectives.communicator import Communicator
from distgrad.step import DistributedStep


class CommunicatorRank:
    """One rank of a job that has a communicator: what the engines with one have in common."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size

    def barrier(self) -> None:
        self._comm.barrier()

    def clear(self) -> None:
        tensors_of_rank.cache_clear()
        tf.keras.backend.clear_session()


def step(
    comm: Communicator,
    case: str,
    rank: int,
    micro_batches: int = MICRO_BATCHES,
    **options: Any,
) -> Prepared:
    """Prepare a whole step, as a user calls it, on tensors that are in memory.

    Args:
        micro_batches: how many of them the rank's rows make.
        options: of the step.
    """
    with comm.scope():
        model = models.build(case)
        optimizer = optimizer_of(case, model)
    take = DistributedStep(
        model, models.loss(), optimizer, comm=comm, micro_batch_size=MICRO_BATCH, **{"log_every": 0, **options}
    )
    x, y = batch(case, rank, micro_batches)

    def turn() -> None:
        # As a next step would: else the gradient stays in memory that the other contestants' sums would use.
        take(x, y).expire()

    return Prepared(turn, evidence(model, turn))


@functools.lru_cache(maxsize=1)
def tensors_of_rank(case: str, rank: int) -> list[tf.Tensor]:
    """Return a rank's tensors. All turns of a case read the same ones: all contestants are in memory at once."""
    return [tf.constant(array) for array in split(case, vector_of_rank(case, rank))]


def graph_sum(comm: Communicator, case: str) -> Prepared:
    """Prepare a sum inside a TensorFlow graph, tensors in and a tensor out."""
    given = tensors_of_rank(case, comm.rank)

    def turn() -> tf.Tensor:
        return comm.sum_over_workers(lambda *tensors: list(tensors), given, borrow=True)

    compiled = tf.function(turn, autograph=False)
    check(compiled().numpy(), comm.size)
    return Prepared(compiled)
