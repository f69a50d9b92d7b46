"""Losses, metrics and states that are no plain sums over rows: the numbers of one process, or a line that says so."""

from typing import Any

import keras
import numpy as np
import pytest

import distgrad
from distgrad import Communicator
from support.fits import from_root, same
from support.kinds_zoo import BATCH, EXACT, KINDS, Case, X
from support.marks import usual_ones

USUAL = [
    "loss: a mean",
    "loss: own call",
    "loss: unreduced, weighted",
    "added: hinge",
    "added: constant",
    "state: counter",
    "state: moving sum",
    "state: spectral",
    "metric: batches",
    "metric: in a layer",
    "model: compute_loss, penalised",
    "model: compute_metrics",
    "loss of all rows: circle",
    "metric: largest",
]


def trained(comm: Communicator | None, case: Case, micro_batch_size: int | None) -> tuple[keras.Model, Any, Any]:
    """The model after two epochs, its history, and what evaluate gives."""
    keras.utils.set_random_seed(1)
    if comm is None:
        model = case.build()
    else:
        with comm.scope():
            model = distgrad.distribute(case.build(), comm, micro_batch_size=micro_batch_size)
    model.compile(**case.compiled(), run_eagerly=comm is None)  # tracing the oracle would take longer
    how = {"sample_weight": case.sample_weight, "batch_size": BATCH, "verbose": 0}
    history = model.fit(X, case.y, epochs=2, shuffle=False, **how).history
    return model, history, model.evaluate(X, case.y, return_dict=True, **how)


@pytest.mark.parametrize("name", usual_ones(EXACT, USUAL, "loss of all rows: pairs"))
def test_the_numbers_of_one_process(comm: Communicator, capfd: pytest.CaptureFixture[str], name: str) -> None:
    compare(comm, capfd, name, 2)


@pytest.mark.parametrize("name", usual_ones([name for name in EXACT if KINDS[name].note], ["metric: largest"]))
def test_what_needs_all_rows_without_micro_batches(
    comm: Communicator, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    compare(comm, capfd, name, None)


def of_keras_alone(case: Case) -> tuple[list[np.ndarray], Any, Any]:
    """The variables, the history, and what evaluate gives, of plain Keras."""
    model, history, evaluated = trained(None, case, None)
    return [variable.numpy() for variable in model.variables], history, evaluated


def compare(comm: Communicator, capfd: pytest.CaptureFixture[str], name: str, micro_batch_size: int | None) -> None:
    case = KINDS[name]
    expected, history, evaluated = from_root(comm, lambda: of_keras_alone(case))
    capfd.readouterr()
    model, found, found_evaluated = trained(comm, case, micro_batch_size)
    same(found, history, 2e-5)
    same(found_evaluated, evaluated, 2e-5)
    for own, theirs in zip(model.variables, expected, strict=True):
        np.testing.assert_allclose(own.numpy(), theirs, atol=2e-5, err_msg=own.path)
    notes = [text for text in capfd.readouterr().err.splitlines() if "distgrad: note" in text]
    is_cut = comm.size > 1 or micro_batch_size is not None
    assert bool(notes) == bool(case.note and is_cut and comm.is_root)
    assert all(case.note in text for text in notes)


def test_what_only_all_rows_tell_is_said(comm: Communicator, capfd: pytest.CaptureFixture[str]) -> None:
    """A state that no mean and no sum gives: the mean is taken, and a line says so."""
    trained(comm, KINDS["state: largest"], 2)
    assert ("known from all rows together only" in capfd.readouterr().err) == comm.is_root


def test_an_evaluation_alone_says_it_too(comm: Communicator, capfd: pytest.CaptureFixture[str]) -> None:
    """Once for a model."""
    case = KINDS["metric: largest"]
    with comm.scope():
        model = distgrad.distribute(case.build(), comm, micro_batch_size=2)
    model.compile(**case.compiled())
    for _ in range(2):
        model.evaluate(X, case.y, batch_size=BATCH, verbose=0)
        model.compile(**case.compiled())
    assert capfd.readouterr().err.count(case.note) == comm.is_root
