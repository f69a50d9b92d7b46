"""Models whose losses, metrics and states are not simply sums over rows, in Keras's own terms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

ROWS, BATCH = 17, 7
RNG = np.random.default_rng(23)
X = RNG.normal(size=(ROWS, 5)).astype("float32")
Y = RNG.normal(size=(ROWS, 2)).astype("float32")
CLASSES = RNG.integers(0, 3, ROWS)
BITS = (RNG.random((ROWS, 2)) < np.linspace(0.1, 0.9, ROWS)[:, np.newaxis]).astype("float32")
WEIGHTS = RNG.uniform(0.2, 2, ROWS).astype("float32")


class Case(NamedTuple):
    """A model, how it is compiled, and its data.

    Attributes:
        note: what the root's line must say of it; empty for none.
    """

    build: Callable[[], keras.Model]
    compiled: Callable[[], dict[str, Any]]
    y: Any = Y
    sample_weight: Any = None
    note: str = ""


def dense(*inner: Callable[[], layers.Layer], last: str | None = None, units: int = 2) -> Callable[[], keras.Model]:
    """A small network with layers of the case's own in its midst."""
    return lambda: keras.Sequential(
        [keras.Input((5,)), layers.Dense(5, "tanh"), *(make() for make in inner), layers.Dense(units, last)]
    )


def on_a_sphere() -> keras.Model:
    """Outputs of length 1."""
    return keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.UnitNormalization()])


def with_loss(loss: Any, rate: float = 0.05, **more: Any) -> Callable[[], dict[str, Any]]:
    """What is given to compile."""
    return lambda: {"optimizer": keras.optimizers.SGD(rate), "loss": loss() if isinstance(loss, type) else loss, **more}


def with_metric(metric: type[keras.metrics.Metric]) -> Callable[[], dict[str, Any]]:
    """What is given to compile, with a metric that is made anew."""
    return lambda: {"optimizer": keras.optimizers.SGD(0.05), "loss": "mse", "metrics": [metric()]}


# ---- losses


def mean_of_all(y: Any, p: Any) -> Any:
    return ops.mean(ops.square(y - p))


def sum_of_all(y: Any, p: Any) -> Any:
    return 0.1 * ops.sum(ops.abs(y - p))


def log_of_mean(y: Any, p: Any) -> Any:
    return ops.log(1 + ops.mean(ops.square(y - p)))


def pairs(y: Any, p: Any) -> Any:
    """Contrastive: for each row, the mean over all rows of the batch."""
    far = ops.sum(ops.square(p[:, None] - p[None]), -1)
    like = ops.cast(ops.equal(ops.reshape(y, (-1, 1)), ops.reshape(y, (1, -1))), far.dtype)
    return ops.mean(like * far + (1 - like) * ops.square(ops.relu(2 - ops.sqrt(far + 1e-6))), -1)


def retrieval(_: Any, p: Any) -> Any:
    """Each row is to find itself among all rows: one number for the batch."""
    scores = p @ ops.transpose(ops.tanh(p))
    return -ops.mean(ops.diagonal(ops.log_softmax(scores)))


class Doubled(keras.losses.MeanSquaredError):
    """A loss with a `__call__` of its own."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return 2 * super().__call__(y_true, y_pred, sample_weight) + 1


def unreduced() -> dict[str, Any]:
    loss = keras.losses.MeanSquaredError(reduction=None)
    return {"optimizer": keras.optimizers.SGD(0.01), "loss": loss}


# ---- losses that layers add


class Adds(layers.Layer):
    """Adds a loss to those of the model."""

    def __init__(self, loss: Callable[[Any], Any]) -> None:
        super().__init__()
        self._loss = loss

    def call(self, x: Any) -> Any:
        self.add_loss(self._loss(x))
        return x


def adds(loss: Callable[[Any], Any]) -> Callable[[], layers.Layer]:
    return lambda: Adds(loss)


# ---- states


class State(layers.Layer):
    """Keeps a state, and uses it as it was before the batch."""

    def __init__(self, update: Callable[[Any, Any], Any], dtype: str = "float32", size: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._update, self._kind, self._size = update, dtype, size

    def build(self, _: Any) -> None:
        self.state = self.add_weight(shape=self._size, initializer="zeros", dtype=self._kind, trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        before = ops.copy(self.state)
        if training:
            self.state.assign(ops.cast(self._update(before, x), self._kind))
        return x * (1 + 0.01 * ops.mean(ops.cast(before, "float32")))


def keeps(update: Callable[[Any, Any], Any], dtype: str = "float32", size: tuple[int, ...] = ()) -> Any:
    return lambda: State(update, dtype, size)


class Clipped(layers.Dense):
    """Clips its kernel, which is trained, in every training pass."""

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.kernel.assign(ops.clip(self.kernel, -0.3, 0.3))
        return super().call(x)


# ---- metrics


def mean_error(y: Any, p: Any) -> Any:
    return ops.mean(ops.abs(y - p))


def dice(y: Any, p: Any) -> Any:
    return (2 * ops.sum(y * p) + 1) / (ops.sum(y) + ops.sum(p) + 1)


class Largest(keras.metrics.Metric):
    """The largest output so far."""

    def __init__(self) -> None:
        super().__init__(name="largest")
        self.value = self.add_weight(shape=(), initializer="zeros", name="value")

    def update_state(self, _: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ARG002
        self.value.assign(ops.maximum(self.value, ops.max(y_pred)))

    def result(self) -> Any:
        return self.value + 0.0


class Batches(keras.metrics.Metric):
    """The number of batches, and of rows."""

    def __init__(self) -> None:
        super().__init__(name="batches")
        self.batches = self.add_weight(shape=(), initializer="zeros", name="batches")
        self.rows = self.add_weight(shape=(), initializer="zeros", name="rows")

    def update_state(self, _: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ARG002
        self.batches.assign_add(1.0)
        self.rows.assign_add(ops.cast(ops.shape(y_pred)[0], "float32"))

    def result(self) -> Any:
        return self.rows / ops.maximum(self.batches, 1)


class Measured(layers.Layer):
    """A layer with a metric of its own, which counts once a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.activity = keras.metrics.Mean(name="activity")

    def call(self, x: Any) -> Any:
        self.activity.update_state(ops.mean(ops.square(x)))
        return x


# ---- models with a compute_loss or compute_metrics of their own


class Penalised(keras.Sequential):
    """Its loss has a term for the size of the outputs."""

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight) + 0.1 * ops.mean(ops.square(y_pred))


class SumOfLosses(keras.Sequential):
    """Its loss is a sum over the rows."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        del x, sample_weight, training
        return 0.05 * ops.sum(ops.square(y - y_pred))


class Reports(keras.Sequential):
    """Logs of its own: one that follows from a metric, and one of the batch."""

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "twice": 2 * logs["mae"], "size": ops.mean(ops.abs(y_pred))}


def of(kind: type[keras.Sequential], **penalty: Any) -> Callable[[], keras.Model]:
    return lambda: kind([keras.Input((5,)), layers.Dense(4, "tanh", **penalty), layers.Dense(2)])


MSE = with_loss("mse", metrics=["mae"])
OWN = {
    "a mean": Case(dense(), with_loss(mean_of_all)),
    "a mean, weighted": Case(dense(), with_loss(mean_of_all), sample_weight=WEIGHTS, note="loss 'mean_of_all'"),
    "a sum": Case(dense(), with_loss(sum_of_all)),
    "own call": Case(dense(), with_loss(Doubled)),
    "own call, weighted": Case(dense(), with_loss(Doubled), sample_weight=WEIGHTS),
    "unreduced": Case(dense(), unreduced),
    "unreduced, weighted": Case(dense(), unreduced, sample_weight=WEIGHTS),
}
WHOLE = {
    "log of a mean": Case(dense(), with_loss(log_of_mean), note="loss 'log_of_mean'"),
    "dice": Case(dense(last="sigmoid"), with_loss(keras.losses.Dice), y=BITS, note="loss 'dice'"),
    "tversky": Case(dense(last="sigmoid"), with_loss(keras.losses.Tversky), y=BITS, note="loss 'tversky'"),
    "pairs": Case(dense(), with_loss(pairs), y=CLASSES, note="loss 'pairs'"),
    "pairs, weighted": Case(dense(), with_loss(pairs), y=CLASSES, sample_weight=WEIGHTS, note="loss 'pairs'"),
    "retrieval": Case(dense(), with_loss(retrieval), note="loss 'retrieval'"),
}
if hasattr(keras.losses, "Circle"):  # which came with Keras 3.7
    WHOLE["circle"] = Case(
        on_a_sphere,
        lambda: {"optimizer": keras.optimizers.SGD(1e-3), "loss": keras.losses.Circle()},
        y=CLASSES,
        note="loss 'circle'",
    )
    WHOLE["pairs, unreduced"] = Case(
        dense(),
        with_loss(keras.losses.Circle(gamma=4, reduction=None), rate=1e-3),
        y=CLASSES,
        note="loss 'circle'",
    )
ADDED = {
    "hinge": Case(dense(adds(lambda x: 0.01 * ops.sum(ops.relu(x - 0.9)))), MSE),
    "mean": Case(dense(adds(lambda x: ops.mean(ops.square(x)))), MSE),
    "sum": Case(dense(adds(lambda x: 0.01 * ops.sum(ops.square(x)))), MSE),
    "constant": Case(dense(adds(lambda _: ops.convert_to_tensor(0.5)), adds(lambda x: 0.1 * ops.mean(x))), MSE),
    "activity": Case(dense(lambda: layers.Dense(4, activity_regularizer="l2", kernel_regularizer="l1")), MSE),
}
STATES = {
    "counter": Case(dense(keeps(lambda n, _: n + 1, "int32")), MSE),
    "counter of floats": Case(dense(keeps(lambda n, _: n + 1.0)), MSE),
    "rows seen": Case(dense(keeps(lambda n, x: n + ops.cast(ops.shape(x)[0], "float32"))), MSE),
    "sum": Case(dense(keeps(lambda n, x: n + 0.1 * ops.sum(x, 0), size=(5,))), MSE),
    "moving sum": Case(dense(keeps(lambda n, x: 0.9 * n + 0.1 * ops.sum(x, 0), size=(5,))), MSE),
    "moving mean": Case(dense(keeps(lambda n, x: 0.9 * n + 0.1 * ops.mean(x, 0), size=(5,))), MSE),
    "flag": Case(dense(keeps(lambda n, _: ops.ones_like(n), "bool")), MSE),
    "spectral": Case(dense(lambda: layers.SpectralNormalization(layers.Dense(4))), MSE),
    "clipped kernel": Case(dense(lambda: Clipped(4)), MSE),
    "largest": Case(dense(keeps(lambda n, x: ops.maximum(n, ops.max(x)))), MSE, note="known from all rows together"),
}
METRICS = {
    "mean": Case(dense(), with_loss("mse", metrics=[mean_error])),
    "dice": Case(dense(last="sigmoid"), with_loss("mse", metrics=[dice]), y=BITS, note="metric 'dice'"),
    "largest": Case(dense(), with_metric(Largest), note="metric 'largest'"),
    "batches": Case(dense(), with_metric(Batches)),
    "in a layer": Case(dense(Measured), MSE),
    "root": Case(dense(), with_loss("mse", metrics=["RootMeanSquaredError", "R2Score"])),
}
MODELS = {
    "compute_loss": Case(of(Penalised), MSE),
    "compute_loss, penalised": Case(of(Penalised, kernel_regularizer="l2"), MSE),
    "compute_loss, a sum": Case(of(SumOfLosses), with_loss(None, metrics=["mae"])),
    "compute_metrics": Case(of(Reports), MSE),
}
KINDS = {
    f"{what}: {name}": case
    for what, cases in (
        ("loss", OWN),
        ("loss of all rows", WHOLE),
        ("added", ADDED),
        ("state", STATES),
        ("metric", METRICS),
        ("model", MODELS),
    )
    for name, case in cases.items()
}
EXACT = [name for name, case in KINDS.items() if not case.note.startswith("known")]
