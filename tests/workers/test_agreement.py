"""Models and settings that differ between workers are found before anything is summed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.errors import ModelMismatch, SettingsMismatch
from support.steps import integers, linear, own, product, quiet, weights

MISMATCHES = {
    "name": lambda odd: [keras.layers.Dense(3, name="odd" if odd else "even")],
    "shape": lambda odd: [keras.layers.Dense(2 if odd else 3, name="a"), keras.layers.Dense(3 if odd else 2, name="b")],
    "dtype": lambda odd: [keras.layers.Dense(3, name="a", dtype="float64" if odd else "float32")],
    "count": lambda odd: [keras.layers.Dense(3, name="a", use_bias=odd)],
}


@pytest.mark.fault(13, 14)
@pytest.mark.usefixtures("several_processes")
@pytest.mark.parametrize("difference", MISMATCHES)
def test_models_that_differ_are_found_before_anything_is_summed(comm: Communicator, difference: str) -> None:
    if comm.backend == "tf" and difference != "name":
        pytest.skip("TensorFlow's own collectives break down when workers create different variables")
    last = comm.rank == comm.size - 1
    with comm.scope():
        model = keras.Sequential([keras.Input((6,)), *MISMATCHES[difference](last)], name="differs")
    before = weights(model)
    with pytest.raises(ModelMismatch, match=f"rank {comm.size - 1}") as caught:
        quiet(comm, model, product)(np.ones((2, 6), "float32"), np.ones((2, 3), "float32"))
    assert (caught.value.code, caught.value.rank, caught.value.step) == ("DG020", comm.size - 1, 0)
    np.testing.assert_array_equal(weights(model), before)


@pytest.mark.fault(15)
@pytest.mark.usefixtures("several_processes")
def test_settings_that_differ_are_found(comm: Communicator) -> None:
    step = quiet(comm, linear(comm), product, reduction="mean" if comm.is_root else "sum")
    with pytest.raises(SettingsMismatch, match=r"reduction=sum' on rank 1 but 'reduction=mean' on rank 0"):
        step(*integers())


def test_the_first_step_broadcasts_weights_and_optimizer_state(comm: Communicator) -> None:
    x, y = integers()
    with comm.scope():
        model = linear(comm, 1.0 + comm.rank)
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(100 * (comm.rank + 1))
        optimizer.variables[2].assign(tf.fill((2, 1), float(comm.rank)))
    quiet(comm, model, product, optimizer)(*own(comm, (x, y)))
    assert optimizer.iterations.numpy() == 101
    state = np.concatenate([weights(model), np.ravel(optimizer.variables[2].numpy())]).astype("float64")
    processes = comm.size // comm.span
    np.testing.assert_allclose(comm.process_sum(state), processes * state, rtol=1e-12)
