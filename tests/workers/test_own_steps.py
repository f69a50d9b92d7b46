"""Models with a `train_step`, `test_step`, `compute_loss` or `compute_metrics` of their own: what Keras gives alone."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import distgrad
from distgrad import Communicator
from distgrad.keras_internals import set_global_seed_generator
from support.fits import LOGGED, first, from_root, weights
from support.marks import one_for_every_engine, usual_ones
from support.own_step_zoo import BATCH, OWN_STEPS, OwnStep, network, rows_of, sgd, update

USUAL = ("VAE", "WGAN-GP", "DDIM", "SimCLR", "captions, one step each", "weighted", "not built", "test_step", "states")


def trained(comm: Communicator | None, case: OwnStep, micro_batch_size: int | None = None) -> tuple[Any, Any, Any]:
    """What two epochs of fit leave of a model, on all workers or in plain Keras: itself, its history, its scores."""
    keras.utils.set_random_seed(7 if comm is None else 7 + comm.rank)  # the weights are those of the root
    if comm is None:
        model = case.build()
    else:
        with comm.scope():
            model = distgrad.distribute(case.build(), comm, micro_batch_size=micro_batch_size)
    case.compile(model)
    model.run_eagerly = comm is None  # tracing the oracle would take longer
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
def of_keras_alone(comm: Communicator, name: str) -> tuple[np.ndarray, Any, Any]:
    """The weights, the history and the scores of plain Keras."""

    def compute() -> tuple[np.ndarray, Any, Any]:
        model, history, scores = trained(None, OWN_STEPS[name])
        return weights(model), history, scores

    return from_root(comm, compute)


def same(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    extra = {name for name in found if name.startswith(("gradient_sum_", "gradient_norm_"))}  # of several updates
    assert set(found) - LOGGED - extra == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", usual_ones(OWN_STEPS, USUAL, "DCGAN"))
def test_two_epochs_are_those_of_keras_alone(comm: Communicator, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    compare(comm, name, None, capfd)


@pytest.mark.parametrize("name", usual_ones(OWN_STEPS, ["compute_metrics"], "states"))
def test_micro_batches_change_nothing(comm: Communicator, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    compare(comm, name, 3, capfd)


def compare(comm: Communicator, name: str, micro_batch_size: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    case = OWN_STEPS[name]
    expected, history, scores = of_keras_alone(comm, name)
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


class Drawing(keras.Model):
    """Draws a number for each row, and learns it: a row's weight, and its state, are minus the numbers drawn so far.

    Args:
        source: "generator" draws by a `SeedGenerator` of the model's own, "keras" by Keras's global one, "tf" by
            TensorFlow's.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.seed = source, keras.random.SeedGenerator(3)
        self.learned = self.add_weight(shape=(12,), initializer="zeros", name="learned")
        self.drawn = self.add_weight(shape=(12,), initializer="zeros", trainable=False, name="drawn")

    def draw(self, rows: Any) -> Any:
        if self.source == "tf":
            return tf.random.uniform([rows, 1], 1.0, 2.0)
        return keras.random.uniform((rows, 1), 1.0, 2.0, seed=self.seed if self.source == "generator" else None)

    def train_step(self, place: Any) -> dict[str, Any]:
        drawn = ops.mean(place * self.draw(rows_of(place)), axis=0)
        with tf.GradientTape() as tape:
            loss = ops.sum(drawn * self.learned)
        update(self.optimizer, tape, loss, [self.learned])
        self.drawn.assign(self.drawn - drawn)
        return {"loss": loss}


def numbers_drawn(comm: Communicator, source: str, micro_batch_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """What each of 12 rows has drawn in each of two steps, (2, 12), as the weights and as the state tell it."""
    keras.utils.set_random_seed(5)
    set_global_seed_generator(None)  # which older releases of Keras keep
    with comm.scope():
        model = distgrad.distribute(Drawing(source), comm, micro_batch_size=micro_batch_size)
    model.compile(keras.optimizers.SGD(1.0))
    found = []
    for _ in range(2):
        model.fit(np.eye(12, dtype="float32"), batch_size=12, shuffle=False, verbose=0)
        found.append((12 * np.array(model.learned), 12 * np.array(model.drawn)))
    learned, drawn = (np.diff(np.stack(each), axis=0, prepend=np.zeros((1, 12))) for each in zip(*found, strict=True))
    return learned, drawn


@pytest.mark.parametrize("micro_batch_size", [pytest.param(None, marks=pytest.mark.thorough), 3])
@pytest.mark.parametrize("source", one_for_every_engine(["generator", "keras", "tf"], "generator"))
def test_every_row_draws_numbers_of_its_own(comm: Communicator, source: str, micro_batch_size: int | None) -> None:
    """Also in the next step; and in the next run they are the same."""
    learned, drawn = numbers_drawn(comm, source, micro_batch_size)
    assert len(np.unique(np.round(learned, 4))) == learned.size
    if source != "tf" or micro_batch_size is None:  # TensorFlow's own cannot be drawn again for the last pass
        np.testing.assert_allclose(learned, drawn, atol=1e-5)
    again, _ = numbers_drawn(comm, source, micro_batch_size)
    np.testing.assert_allclose(learned, again, atol=1e-5)


class Given(keras.Model):
    """Notes how its step is given the data, and learns from the first array."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.given = network(3, 2), list[Any]()

    def train_step(self, data: Any) -> dict[str, Any]:
        self.given.append(tf.nest.map_structure(lambda tensor: tuple(tensor.shape)[1:], data))
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(self.inner(tf.nest.flatten(data)[0]) - 1.0))
        update(self.optimizer, tape, loss, self.inner.trainable_variables)
        return {"loss": loss}


ROWS_OF_3, ROWS_OF_2 = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
GIVEN: dict[str, tuple[Any, ...]] = {  # the arguments of fit
    "array": (ROWS_OF_3,),
    "dict": ({"a": ROWS_OF_3, "b": ROWS_OF_2},),
    "list": ([ROWS_OF_3, ROWS_OF_2],),
    "tuple of one": ((ROWS_OF_3,),),
    "dict and array": ({"a": ROWS_OF_3, "b": ROWS_OF_2}, ROWS_OF_2),
    "weighted rows": (ROWS_OF_3, ROWS_OF_2, np.ones(12, "float32")),
}
DATASETS: dict[str, Any] = {
    "dataset of arrays": ROWS_OF_3,
    "dataset of tuples of one": (ROWS_OF_3,),
    "dataset of pairs in a tuple": ((ROWS_OF_3, ROWS_OF_2),),
}


@pytest.mark.parametrize("name", [*GIVEN, *DATASETS])
def test_data_have_the_structure_that_keras_gives_them(comm: Communicator, name: str) -> None:
    with comm.scope():
        model = distgrad.distribute(Given(), comm)
    oracle = Given()
    for one in (oracle, model):
        one.compile(sgd())
        if name in DATASETS:
            one.fit(tf.data.Dataset.from_tensor_slices(DATASETS[name]).batch(6), shuffle=False, verbose=0)
        else:
            parts = dict(zip(("x", "y", "sample_weight"), GIVEN[name], strict=False))
            one.fit(**parts, batch_size=6, verbose=0)
    assert set(map(repr, model.given)) == set(map(repr, oracle.given))


def test_statistics_of_several_updates_are_named_after_the_optimizers(comm: Communicator) -> None:
    _, history, _ = trained(comm, OWN_STEPS["DCGAN"])
    names = {f"{what}_{name}" for what in LOGGED for name in ("d_optimizer", "g_optimizer")}
    assert set(history) == {"d_loss", "g_loss", *LOGGED, *names}


def test_arguments_without_effect_are_named(comm: Communicator, capfd: pytest.CaptureFixture[str]) -> None:
    with comm.scope():
        model = distgrad.distribute(Given(), comm, groups={"kernels": "kernel"}, statistics="variables")
    model.compile(sgd())
    model.fit(ROWS_OF_3, batch_size=6, epochs=2, verbose=0)
    assert capfd.readouterr().err.count("groups, statistics: without effect on a train_step") == comm.is_root
