"""Some of Keras's classes on the workers, against Keras alone. tests/measure/sweep.py takes all of them."""

import pytest

from distgrad import Communicator
from support.sweep_zoo import BASES, DIFFERS, OK, SKIPPED, Case, Outcome, cases, classes, run
from support.versions import KERAS, since_keras

CHOSEN = [
    "optimizers Adam (global_clipnorm, use_ema)",
    pytest.param("losses Circle", marks=since_keras(3, 7)),
    "metrics AUC",
    "layers SpectralNormalization",
]


def outcome(comm: Communicator, chosen: str) -> Outcome:
    kind, name = chosen.split()[:2]
    return run(comm, next(case for case in cases(kind, [name]) if f"{kind} {case.title}" == chosen))


@pytest.mark.parametrize("chosen", CHOSEN)
def test_is_as_in_keras_alone(comm: Communicator, chosen: str) -> None:
    found = outcome(comm, chosen)
    assert found.status == OK, found


def test_what_is_not_as_in_keras_alone_is_told(comm: Communicator) -> None:
    found = outcome(comm, "layers BatchNormalization")
    assert found.status == DIFFERS
    assert "BatchNormalization(synchronized=True)" in found.notes[-1]
    assert not found.is_silent


def test_what_differs_is_seen(comm: Communicator) -> None:
    """Each worker alone trains on its own half of the loss."""
    case = next(cases("losses", ["MeanSquaredError"]))
    fit = case.make()
    kept = fit.compiled()["loss"]
    wrong = fit._replace(compiled=lambda: {"optimizer": "sgd", "loss": lambda y, p: kept(y, p) * (1.0 + comm.rank)})
    found = run(comm, Case("losses", "wrong", "", lambda: wrong))
    assert found.status == (DIFFERS if comm.size > 1 else OK)


# Older releases of Keras have fewer.
OPTIMIZERS, LOSSES, LAYERS = (15, 20, 130) if KERAS >= (3, 15) else (12, 15, 100)


@pytest.mark.parametrize(
    ("kind", "some"), [("optimizers", OPTIMIZERS), ("losses", LOSSES), ("metrics", 40), ("layers", LAYERS)]
)
def test_classes_are_found(kind: str, some: int) -> None:
    found = classes(kind)
    assert len(found) > some
    assert BASES[kind] not in found.values()


def test_a_layer_without_weights_or_states_is_skipped(comm: Communicator) -> None:
    assert outcome(comm, "layers ReLU").status == SKIPPED
