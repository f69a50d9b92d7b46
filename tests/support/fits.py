"""What the workers' tests of `fit` share: a model with its oracle, and one line with its numbers."""

import base64
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

import keras
import numpy as np
import tensorflow as tf

import distgrad
from distgrad import Communicator
from support.fit_zoo import Fit

Result = TypeVar("Result")
LOGGED = {"gradient_sum", "gradient_norm"}


def from_root(comm: Communicator, compute: Callable[[], Result]) -> Result:
    """Compute what an oracle gives on the root alone: the other workers' cores have something else to do."""
    text = base64.b64encode(pickle.dumps(compute())).decode() if comm.is_root else ""
    keras.utils.clear_session()  # Keras numbers names, and the root has used up some
    return cast(Result, pickle.loads(base64.b64decode(comm.from_root(text))))


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in model.get_weights()])


def build(comm: Communicator, case: Fit, **options: Any) -> tuple[keras.Model, keras.Model]:
    """The distributed model, with other weights on every rank, and the oracle with those of rank 0."""
    oracle = build_oracle(case)
    return build_distributed(comm, case, **options), oracle


def build_oracle(case: Fit) -> keras.Model:
    """The model of plain Keras."""
    keras.utils.set_random_seed(7)
    oracle = case.build()
    oracle.compile(**case.compiled(), run_eagerly=True)  # tracing would take longer
    densify(oracle.optimizer)
    return oracle


def build_distributed(comm: Communicator, case: Fit, **options: Any) -> keras.Model:
    """The distributed model, with the oracle's weights on rank 0 and others elsewhere."""
    keras.utils.set_random_seed(7 + comm.rank)
    with comm.scope():
        model = distgrad.distribute(case.build(), comm, **options)
    model.compile(**case.compiled())
    return model


def densify(optimizer: keras.optimizers.Optimizer) -> None:
    """Let it see each gradient densely."""
    apply = optimizer.apply

    def apply_densely(gradients: Any, variables: Any = None) -> None:
        dense = [gradient if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
        apply(dense, variables)

    optimizer.apply = apply_densely


def first(data: Any, rows: int) -> Any:
    return keras.tree.map_structure(lambda array: array[:rows], data)


def same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert set(found) - LOGGED == set(expected) - LOGGED
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


def line(comm: Communicator, **options: Any) -> keras.Model:
    """y = x·w from w = 0, distributed."""
    with comm.scope():
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = distgrad.distribute(keras.Sequential([keras.Input((3,)), layer]), comm, **options)
    model.compile("sgd", "mse")
    return model


def numbers(rows: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.integers(-2, 3, (rows, 3)).astype("float32"), rng.integers(-2, 3, (rows, 1)).astype("float32")
