"""Models with a `train_step`, `test_step`, `compute_loss` or `compute_metrics` of their own: what Keras gives alone."""

import functools
from typing import Any

import keras
import numpy as np
import pytest

import distgrad
from distgrad import Communicator
from support.fits import LOGGED, first, weights
from support.marks import one_for_every_engine
from support.own_step_zoo import BATCH, OWN_STEPS, OwnStep

# Says NumPy of how Keras reads a variable.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def trained(comm: Communicator | None, case: OwnStep, micro_batch_size: int | None = None) -> tuple[Any, Any, Any]:
    """What two epochs of fit leave of a model, on all workers or in plain Keras: itself, its history, its scores."""
    keras.utils.set_random_seed(7 if comm is None else 7 + comm.rank)  # the weights are those of the root
    if comm is None:
        model = case.build()
    else:
        with comm.scope():
            model = distgrad.distribute(case.build(), comm, micro_batch_size=micro_batch_size)
    case.compile(model)
    how = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **case.fit}
    held_out, scores = {}, {}
    if case.validates:
        given = first((case.x,) if case.y is None else (case.x, case.y), 14)
        held_out = {"validation_data": given[0] if case.y is None else given, "validation_batch_size": 6}
    history = model.fit(case.x, case.y, **how, **held_out).history
    if case.validates:
        scores = model.evaluate(case.x, case.y, batch_size=BATCH, verbose=0, return_dict=True)
    return model, history, scores


@functools.cache
def of_keras_alone(name: str) -> tuple[np.ndarray, Any, Any]:
    """The weights, the history and the scores of plain Keras."""
    model, history, scores = trained(None, OWN_STEPS[name])
    return weights(model), history, scores


def same(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    extra = {name for name in found if name.startswith(("gradient_sum_", "gradient_norm_"))}  # of several updates
    assert set(found) - LOGGED - extra == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("name", one_for_every_engine(OWN_STEPS, "DCGAN"))
def test_two_epochs_are_those_of_keras_alone(
    comm: Communicator, name: str, micro_batch_size: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    case = OWN_STEPS[name]
    expected, history, scores = of_keras_alone(name)
    model, found, found_scores = trained(comm, case, micro_batch_size)
    is_cut = comm.size > 1 or micro_batch_size is not None
    noted = "distgrad: note: " in capfd.readouterr().err
    assert noted == (case.looks_at_all_rows and is_cut and comm.is_root)
    if case.looks_at_all_rows and is_cut:
        assert np.isfinite(weights(model)).all()
        return
    same(found, history, case.tolerance)
    same(found_scores, scores, case.tolerance)
    np.testing.assert_allclose(weights(model), expected, atol=case.tolerance)
