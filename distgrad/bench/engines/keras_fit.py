"""`fit`, as a user calls it: over distgrad's workers, alone, and Keras's own."""

from typing import Any

import keras
import tensorflow as tf

import distgrad
from distgrad.bench import models
from distgrad.bench.data import MICRO_BATCH
from distgrad.bench.engines.by_hand import batch, evidence, sgd
from distgrad.bench.worker import Prepared
from distgrad.collectives.communicator import Communicator


def over_workers(comm: Communicator, case: str, steps: int) -> Prepared:
    """Prepare distgrad's fit over all workers, in micro-batches as in the bare step."""
    model = distgrad.distribute(models.build(case), comm, MICRO_BATCH)
    turn = _turn(model, case, comm.rank, steps)
    return Prepared(turn, evidence(model, _turn(model, case, comm.rank, 1)))


def alone(comm: Communicator, case: str, rank: int, steps: int) -> Prepared:
    """Prepare distgrad's fit of one worker, the whole batch at once."""
    return Prepared(_turn(distgrad.distribute(models.build(case), comm), case, rank, steps))


def plain(case: str, rank: int, steps: int) -> Prepared:
    """Prepare Keras's own fit."""
    return Prepared(_turn(models.build(case), case, rank, steps))


def _turn(model: keras.Model, case: str, rank: int, steps: int) -> Any:
    """Return a call of `fit` with `steps` steps, on one batch that is in memory."""
    if not model.compiled:
        model.compile(sgd(model), models.loss())
    dataset = tf.data.Dataset.from_tensors(batch(case, rank)).repeat(steps)

    def turn() -> Any:
        return model.fit(dataset, verbose=0, shuffle=False)

    return turn
