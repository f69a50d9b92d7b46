"""`fit`, as a user calls it: over distgrad's workers, alone, and Keras's own."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import distgrad
from distgrad.bench import models
from distgrad.bench.cases import FITTED
from distgrad.bench.data import MICRO_BATCH, examples
from distgrad.bench.engines.by_hand import batch, evidence, optimizer_of
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
        model.compile(optimizer_of(case, model), models.loss())
    dataset = tf.data.Dataset.from_tensors(batch(case, rank)).repeat(steps)

    def turn() -> Any:
        return model.fit(dataset, verbose=0, shuffle=False)

    return turn


def on_arrays(case: str, turn: str, prepare: Callable[[keras.Model], keras.Model] = lambda model: model) -> Prepared:
    """Prepare a fit with Adam on arrays, which are the same on every rank.

    Args:
        turn: "long fit" or "short fit", which takes one step.
        prepare: what becomes of the model before it is compiled.

    Returns:
        The fit; its evidence is the losses of the first epochs, in which rows are not shuffled.
    """
    batch_size, steps = FITTED[case]
    rows = batch_size * steps if turn.startswith("long") else batch_size
    x, y = (array[:rows] for array in examples(case, 0, batch_size * steps))
    model = prepare(models.build(case))
    model.compile("adam", models.loss())
    first = model.fit(x[:batch_size], y[:batch_size], batch_size, epochs=5, shuffle=False, verbose=0)

    def fit() -> Any:
        return model.fit(x, y, batch_size, verbose=0)

    return Prepared(fit, first.history["loss"])
