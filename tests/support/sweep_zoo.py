"""Every optimizer, loss, metric and layer that Keras has, each in a small model, against Keras alone.

The classes are found in Keras's public modules, and with them their variants, by what their signatures take. Listed by
hand is only what a class cannot do without: arguments, and data of the form that it is made for.

17 rows in batches of 7, 7 and 3: the shares of two workers are uneven, and so are their micro-batches of 2 rows.
"""

import contextlib
import functools
import inspect
import io
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, losses, ops, optimizers

from distgrad import Communicator
from distgrad.errors import DistgradError
from distgrad.keras_internals import is_random_state
from support.fit_zoo import Fit
from support.fits import LOGGED, build
from support.versions import KERAS

ROWS, BATCH, MICRO_BATCH = 17, 7, 2
TOLERANCE = 1e-5  # of numbers that are larger than 1, relative
BASES = {
    "optimizers": keras.optimizers.Optimizer,
    "losses": keras.losses.Loss,
    "metrics": keras.metrics.Metric,
    "layers": keras.layers.Layer,
}
OK, DIFFERS, ERROR, SKIPPED = "OK", "DIFFERS", "ERROR", "SKIPPED"
Options = dict[str, Any]


class Skip(Exception):
    """A class that is not compared, and why."""


class Case(NamedTuple):
    """One class, or a variant of it; `make` raises Skip if there is nothing to compare."""

    kind: str
    name: str
    variant: str
    make: Callable[[], Fit]
    micro_batch_size: int | None = MICRO_BATCH

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        status: OK, DIFFERS, ERROR or SKIPPED.
        difference: the largest one, relative to numbers that are larger than 1.
        text: where it is, or why there is none.
        notes: the lines that distgrad has printed on the root.
        is_told: True if distgrad says that, or why, it does not do what Keras does.
        trace: of an error.
    """

    status: str
    difference: float = 0.0
    text: str = ""
    notes: Sequence[str] = ()
    is_told: bool = True
    trace: str = ""

    @property
    def is_silent(self) -> bool:
        """True if something is wrong, and nothing says so."""
        return self.status in (DIFFERS, ERROR) and not self.is_told


# ---- what there is


def classes(kind: str) -> dict[str, Any]:
    """Return Keras's classes of a kind by name, each once, without those that only serve as bases."""
    module, base = getattr(keras, kind), BASES[kind]
    found: dict[int, tuple[str, Any]] = {}
    for name, one in sorted(vars(module).items()):
        if inspect.isclass(one) and issubclass(one, base) and not _is_abstract(one, base):
            kept = found.get(id(one), (name, one))
            found[id(one)] = (name, one) if name == one.__name__ else kept
    return dict(sorted(found.values(), key=lambda pair: pair[0]))


def _is_abstract(one: Any, base: Any) -> bool:
    """Return True for a class that implements nothing of what makes one of its kind."""
    methods = [name for name in ("apply", "update_step", "update_state", "call") if hasattr(base, name)]
    return all(getattr(one, name) is getattr(base, name) for name in methods)


def _parameters(one: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters that the class itself names."""
    return {
        name: parameter
        for name, parameter in inspect.signature(one.__init__).parameters.items()
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


# What parameters without a default are given, by their names, and what some classes are given besides.
REQUIRED: dict[str, Callable[[], Any]] = {
    "inner_optimizer": lambda: optimizers.SGD(0.05),
    "optimizer_map": lambda: optimizers.OptimizerMap(optimizers.SGD(0.1), {".*bias": optimizers.Adam(0.01)}),
    "num_classes": lambda: 3,
    "target_class_ids": lambda: [0, 2],
    "fn": lambda: losses.mean_squared_error,
    "recall": lambda: 0.5,
    "precision": lambda: 0.5,
    "specificity": lambda: 0.5,
    "sensitivity": lambda: 0.5,
    "units": lambda: 3,
    "filters": lambda: 4,
    "kernel_size": lambda: 2,
    "num_heads": lambda: 2,
    "key_dim": lambda: 3,
    "head_dim": lambda: 3,
    "num_query_heads": lambda: 4,
    "num_key_value_heads": lambda: 2,
    "input_dim": lambda: 11,
    "output_dim": lambda: 3,
    "equation": lambda: "ab,bc->ac",
    "output_shape": lambda: 3,
    "layer": lambda: layers.Dense(3),
    "layers": lambda: [layers.Dense(3), layers.Dense(4, "tanh")],
    "cell": lambda: layers.GRUCell(3),
    "cells": lambda: [layers.LSTMCell(3), layers.GRUCell(2)],
    "module": lambda: None,
    "call_fn": lambda: None,
    "filepath": lambda: None,
    # These draw nothing, or what they draw changes nothing.
    "rate": lambda: 0.0,
    "stddev": lambda: 0.0,
    "factor": lambda: 0.0,
    "height_factor": lambda: 0.0,
    "width_factor": lambda: 0.0,
    # Of layers that have neither weights nor states.
    "activation": lambda: "tanh",
    "output_size": lambda: 2,
    "pool_size": lambda: 2,
    "height": lambda: 4,
    "width": lambda: 4,
    "axes": lambda: -1,
    "num_bins": lambda: 5,
    "dims": lambda: (1,),
    "n": lambda: 2,
    "scale": lambda: 0.5,
    "target_shape": lambda: (-1,),
    "max_number": lambda: 2,
    "function": lambda: ops.square,
}
ALSO: dict[str, Callable[[], Options]] = {
    "ActivityRegularization": lambda: {"l1": 0.01, "l2": 0.02},
    "Attention": lambda: {"use_scale": True, "score_mode": "concat"},
    "Bidirectional": lambda: {"layer": layers.LSTM(3)},
    "Circle": lambda: {"gamma": 4.0},  # with Keras's 80, rounding errors grow to 1e-5 in a few steps of Keras alone
    "CategoryEncoding": lambda: {"num_tokens": 7},
    "Discretization": lambda: {"num_bins": 4, "output_mode": "one_hot"},
    "GroupNormalization": lambda: {"groups": 2},
    "IntegerLookup": lambda: {"vocabulary": [1, 2, 3, 5], "output_mode": "multi_hot"},
    "Lamb": lambda: {"learning_rate": 0.01},
    "MelSpectrogram": lambda: {"fft_length": 16, "sequence_stride": 8, "num_mel_bins": 4, "max_freq": 8000.0},
    "RandomPosterization": lambda: {"factor": 8},
    "STFTSpectrogram": lambda: {"frame_length": 8, "frame_step": 4, "fft_length": 8},
    "SparseTopKCategoricalAccuracy": lambda: {"k": 2},
    "StringLookup": lambda: {"vocabulary": ["a", "b", "c"], "output_mode": "multi_hot"},
    "TextVectorization": lambda: {"vocabulary": ["a", "b", "c"], "output_sequence_length": 3},
    "TopKCategoricalAccuracy": lambda: {"k": 2},
    "Adadelta": lambda: {"learning_rate": 1.0},  # else it moves less than is told apart
}


def arguments(name: str, one: Any, changed: Options) -> Options:
    """Return what a class is built with: what it needs, and what is changed.

    Raises:
        Skip: it needs something that is not known here.
    """
    given = {**changed, **(ALSO[name]() if name in ALSO else {})}
    for parameter in _parameters(one).values():
        if parameter.default is parameter.empty and parameter.name not in given:
            if parameter.name not in REQUIRED:
                raise Skip(f"nothing here gives it {parameter.name}")
            given[parameter.name] = REQUIRED[parameter.name]()
    return given


def cases(kind: str, names: Sequence[str] = ()) -> Iterator[Case]:
    """List the cases of a kind, or of some of its classes, in the same order everywhere."""
    makers = {"optimizers": _optimizer_cases, "losses": _loss_cases, "metrics": _metric_cases, "layers": _layer_cases}
    for found, one in classes(kind).items():
        if not names or found in names:
            yield from makers[kind](found, one)


def _rng() -> np.random.Generator:
    return np.random.default_rng(17)


def _reals(*shape: int) -> np.ndarray:
    return _rng().normal(size=(ROWS, *shape)).astype("float32")


def _fit(make: Callable[[], keras.Model], compiled: Callable[[], Options], x: Any, y: Any, **fit: Any) -> Fit:
    return Fit(make, compiled, x, y, fit, BATCH, TOLERANCE)


# ---- optimizers

OPTIMIZER_VARIANTS: dict[str, Options] = {
    "": {},
    "clipnorm, weight_decay": {"clipnorm": 0.05, "weight_decay": 0.01, "learning_rate": 0.05},
    "global_clipnorm, use_ema": {
        "global_clipnorm": 0.05,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "learning_rate": 0.05,
    },
    "clipvalue, gradient_accumulation_steps": {
        "clipvalue": 0.01,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.05,
    },
    "loss_scale_factor": {"loss_scale_factor": 64.0, "learning_rate": 0.05},
}


def _optimizer_cases(name: str, one: Any) -> Iterator[Case]:
    taken = _parameters(one)
    switches = {key: True for key, p in taken.items() if p.default is False and key != "use_ema"}
    momentum = {"momentum": 0.9} if "momentum" in taken and taken["momentum"].default == 0.0 else {}
    own = {**switches, **momentum}
    for variant, options in [*OPTIMIZER_VARIANTS.items(), *([(", ".join(own), own)] if own else [])]:
        if set(options) <= set(taken):
            yield Case("optimizers", name, variant, functools.partial(_optimizer_fit, name, one, options.copy))
    if "inner_optimizer" in taken:
        yield Case("optimizers", name, "Adam, clipped, growing", functools.partial(_optimizer_fit, name, one, _growing))


def _growing() -> Options:
    inner = optimizers.Adam(0.01, global_clipnorm=0.05, use_ema=True, ema_overwrite_frequency=2)
    return {"inner_optimizer": inner, "dynamic_growth_steps": 2}


def _optimizer_fit(name: str, one: Any, options: Callable[[], Options]) -> Fit:
    def with_embedding() -> keras.Model:
        # Its table is large enough for distgrad to sum only the rows that were used.
        hidden = [layers.Embedding(5500, 3), layers.Flatten(), layers.Dense(5, "tanh"), layers.Dense(2)]
        return keras.Sequential([keras.Input((4,), dtype="int32"), *hidden])

    def compiled() -> Options:
        return {"optimizer": one(**arguments(name, one, options())), "loss": "mse"}

    return _fit(with_embedding, compiled, _rng().integers(0, 9, (ROWS, 4)).astype("int32"), _reals(2))


# ---- losses and metrics


class Form(NamedTuple):
    """Targets of a form, what gives outputs of that form, a loss for them, and a learning rate that is not too much."""

    y: np.ndarray
    head: Callable[[Any], Any]
    loss: str = "mse"
    rate: float = 0.05


def _form(name: str) -> Form:
    """Return the form of targets and outputs that a loss or metric is made for."""
    rng = _rng()
    number, numbers = rng.integers(0, 3, ROWS), rng.integers(0, 2, (ROWS, 2))
    probabilities = rng.dirichlet(np.ones(3), ROWS).astype("float32")
    one_hot, positive = np.eye(3, dtype="float32")[number], rng.uniform(0.5, 3, (ROWS, 2)).astype("float32")
    forms: list[tuple[Sequence[str], Form]] = [
        (("CTC",), Form(rng.integers(1, 4, (ROWS, 2)), lambda x: layers.Reshape((5, 4))(layers.Dense(20)(x)))),
        (("Sparse",), Form(number, layers.Dense(3, "softmax"), "sparse_categorical_crossentropy")),
        (("Generalized",), Form(number, layers.Dense(3, "softmax"), "sparse_categorical_crossentropy")),
        (("Circle",), Form(number, lambda x: layers.UnitNormalization()(layers.Dense(3)(x)))),
        (("Categorical", "OneHot", "F1Score", "FBeta"), Form(one_hot, layers.Dense(3, "softmax"))),
        (("KLDivergence",), Form(probabilities, layers.Dense(3, "softmax"))),
        (("Hinge",), Form((2 * numbers - 1).astype("float32"), layers.Dense(2, "tanh"))),
        (("BinaryIoU",), Form(numbers[:, :1], layers.Dense(1, "sigmoid"))),
        (("Binary", "Dice", "Tversky", "AUC"), Form(numbers, layers.Dense(2, "sigmoid"))),
        (("Precision", "Recall", "itives", "atives", "Sensitivity"), Form(numbers, layers.Dense(2, "sigmoid"))),
        (("Poisson",), Form(rng.integers(0, 4, (ROWS, 2)).astype("float32"), layers.Dense(2, "softplus"))),
        (("Logarithmic",), Form(positive, layers.Dense(2, "softplus"))),
        (("Percentage",), Form(positive, layers.Dense(2, "softplus"), rate=0.0005)),
        (("IoU",), Form(number[:, None], lambda x: ops.multiply(layers.Dense(1, "sigmoid")(x), 2.99))),
        (("Accuracy",), Form(0 * numbers, layers.Dense(2, "relu"))),  # half of its outputs are exactly 0
    ]
    found = [form for words, form in forms if any(word in name for word in words)]
    return found[0] if found else Form(_reals(2), layers.Dense(2))


def _with_head(name: str) -> keras.Model:
    x = keras.Input((6,))
    return keras.Model(x, _form(name).head(layers.Dense(5, "tanh")(x)))


WEIGHTED = {"sample_weight": _rng().uniform(0.2, 3, ROWS).astype("float32")}
LOSS_VARIANTS: dict[str, tuple[Options, Options]] = {
    "": ({}, {}),
    "sum, weighted": ({"reduction": "sum"}, WEIGHTED),
    "none": ({"reduction": None}, {}),
}
if KERAS >= (3, 7):
    LOSS_VARIANTS["mean_with_sample_weight, weighted"] = ({"reduction": "mean_with_sample_weight"}, WEIGHTED)


def _loss_cases(name: str, one: Any) -> Iterator[Case]:
    def make(options: Options, fit: Options) -> Fit:
        def compiled() -> Options:
            loss = one(**arguments(name, one, dict(options)))
            return {"optimizer": optimizers.SGD(_form(name).rate, momentum=0.5), "loss": loss}

        return _fit(lambda: _with_head(name), compiled, _reals(6), _form(name).y, **fit)

    for variant, (options, fit) in LOSS_VARIANTS.items():
        yield Case("losses", name, variant, functools.partial(make, options, fit))


def _metric_cases(name: str, one: Any) -> Iterator[Case]:
    yield Case("metrics", name, "", functools.partial(_metric_fit, name, one))


def _metric_fit(name: str, one: Any) -> Fit:
    """Give the metric to `compile` in both ways."""
    if "y_pred" not in inspect.signature(one.update_state).parameters:
        raise Skip("takes single values, and so compile() does not take it")
    form = _form(name)

    def compiled() -> Options:
        found = {way: [one(**arguments(name, one, {"name": way}))] for way in ("metrics", "weighted_metrics")}
        return {"optimizer": optimizers.SGD(0.05), "loss": form.loss, **found}

    return _fit(lambda: _with_head(name), compiled, _reals(6), form.y, **WEIGHTED)


# ---- layers

FLOATS = [(6,), (5, 4), (5, 5, 4), (3, 4, 4, 2), (2, 3, 3, 3, 2)]  # shapes of a row, until a layer takes one
NEEDED_ELSEWHERE = {
    "FlaxLayer": "wraps a module of Flax",
    "JaxLayer": "wraps a function of JAX",
    "TFSMLayer": "wraps a SavedModel of TensorFlow",
    "TorchModuleWrapper": "wraps a module of PyTorch",
    "InputLayer": "is what keras.Input makes",
}


def _words() -> np.ndarray:
    return _rng().choice(["a", "b", "c", "d"], (ROWS, 3)).astype(object)


INPUTS: dict[str, Callable[[], np.ndarray]] = {
    "Embedding": lambda: _rng().integers(0, 11, (ROWS, 5)).astype("int32"),
    "ReversibleEmbedding": lambda: _rng().integers(0, 11, (ROWS, 5)).astype("int32"),
    "IntegerLookup": lambda: _rng().integers(0, 7, (ROWS, 5)),
    "CategoryEncoding": lambda: _rng().integers(0, 7, (ROWS, 5)),
    "HashedCrossing": lambda: _rng().integers(0, 7, (ROWS, 1)),
    "Hashing": lambda: _rng().integers(0, 7, (ROWS, 5)),
    "StringLookup": _words,
    "TextVectorization": lambda: np.array([[" ".join(words)] for words in _words()], dtype=object),
    "MultiHeadAttention": lambda: _reals(5, 4),
    "GroupedQueryAttention": lambda: _reals(5, 4),
    "Attention": lambda: _reals(5, 4),
    "AdditiveAttention": lambda: _reals(5, 4),
    "TimeDistributed": lambda: _reals(5, 4),
    "MelSpectrogram": lambda: _reals(64),
    "STFTSpectrogram": lambda: _reals(32, 1),
    "SpectralNormalization": lambda: _reals(6),
}


def _layer_cases(name: str, one: Any) -> Iterator[Case]:
    taken = _parameters(one)
    kinds = {"_regularizer": "l2", "_constraint": "unit_norm"}
    own = {key: value for key in taken for ending, value in kinds.items() if key.endswith(ending)}
    yield Case("layers", name, "", lambda: _layer_fit(name, one, {}))
    if own:
        yield Case("layers", name, "regularized, constrained", lambda: _layer_fit(name, one, own))
    if "synchronized" in taken:
        synchronized = {"synchronized": True}
        yield Case("layers", name, "synchronized", lambda: _layer_fit(name, one, synchronized), micro_batch_size=None)


def _layer_fit(name: str, one: Any, options: Options) -> Fit:
    """Find data that a layer takes.

    Raises:
        Skip: there is nothing to compare.
    """
    if name in NEEDED_ELSEWHERE:
        raise Skip(NEEDED_ELSEWHERE[name])
    if _is_of_images(one):
        tried = [_rng().uniform(0, 255, (ROWS, 6, 6, 3)).astype("float32")]
    else:
        tried = [INPUTS[name]()] if name in INPUTS else [_reals(*shape) for shape in FLOATS]
    said = []
    for x, way in itertools.product(tried, WAYS):
        make = functools.partial(_around, name, one, options, x, way)
        try:
            keras.utils.set_random_seed(7)
            model, layer = make()
            model(x[:2])
        except Exception as error:  # whatever a layer says to data that it is not made for
            said.append(_first_line(error))
            continue
        _require_comparable(model, layer, x)
        return _fit(functools.partial(_first_of, make), _adam, x, _reals(2))
    raise RuntimeError(f"takes none of the data there is: {said[0]}")


def _adam() -> Options:
    """Its epsilon is large, so that it does not enlarge the rounding errors of gradients that should be 0."""
    return {"optimizer": optimizers.Adam(0.01, epsilon=1e-3), "loss": "mse"}


def _first_of(make: Callable[[], tuple[keras.Model, layers.Layer]]) -> keras.Model:
    return make()[0]


Way = Callable[[Any, Any], Any]
# How a layer may take inputs: one, several, or a query and a value.
WAYS: list[Way] = [lambda layer, x: layer(x), lambda layer, x: layer([x, x]), lambda layer, x: layer(x, x)]


def _around(name: str, one: Any, options: Options, x: np.ndarray, way: Way) -> tuple[keras.Model, layers.Layer]:
    """Return a model with weights after a layer, and before it if what it takes may be computed; and the layer."""
    layer = one(**arguments(name, one, dict(options)))
    if hasattr(layer, "state_size") and not isinstance(layer, layers.RNN):
        layer = layers.RNN(layer)
    if hasattr(layer, "adapt") and "vocabulary" not in ALSO.get(name, dict[str, Any])():
        layer.adapt(x)
    inputs = keras.Input(x.shape[1:], dtype="string" if x.dtype.kind == "O" else str(x.dtype))
    is_computed = x.dtype.kind == "f" and not _is_of_images(one)
    given = layers.Dense(x.shape[-1])(inputs) if is_computed else inputs
    outputs = [output for output in keras.tree.flatten(way(layer, given)) if output is not None]
    flat = [layers.Flatten()(ops.cast(output, "float32")) for output in outputs]
    joined = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(inputs, layers.Dense(2)(joined)), layer


def _is_of_images(one: Any) -> bool:
    return "image_preprocessing" in one.__module__


def _require_comparable(model: keras.Model, layer: layers.Layer, x: np.ndarray) -> None:
    """Skip a layer that draws random numbers, or has nothing that could differ."""
    if not layer.variables and not model.losses:
        raise Skip("has no weights, no states and adds no losses")
    states = [
        (variable, np.copy(np.asarray(variable))) for variable in layer.variables if not is_random_state(variable)
    ]
    calls = []
    for _ in range(4):
        calls.append(np.asarray(model(x, training=True)))
        for variable, before in states:
            variable.assign(before)
    if any(not np.allclose(call, calls[0]) for call in calls):
        raise Skip("draws random numbers, each worker its own")


# ---- the comparison


def run(comm: Communicator, case: Case) -> Outcome:
    """Train on all workers and alone. Every worker calls it, and is told the worst of all workers' outcomes."""
    printed = io.StringIO()
    keras.backend.clear_session()
    with contextlib.redirect_stderr(printed):
        own = _tried(comm, case)
    notes = list(dict.fromkeys(line for line in printed.getvalue().splitlines() if line.startswith("distgrad:")))
    texts = comm.exchange("\n".join([own.status, str(own.difference), str(own.is_told), own.text, *notes]))
    found = {rank: text.split("\n") for rank, text in texts.items()}
    status, difference, is_told, text = max(found.values(), key=lambda one: _badness(one[0], float(one[1])))[:4]
    notes = found[0][4:]
    if status == DIFFERS:
        is_told = str(any(EXACT not in note for note in notes))
    return Outcome(status, float(difference), text, notes, is_told == "True", own.trace)


EXACT = "is computed on the outputs of all workers"  # what a note says that announces no difference


def _badness(status: str, difference: float) -> tuple[int, float]:
    return [OK, SKIPPED, DIFFERS, ERROR].index(status), difference


def _tried(comm: Communicator, case: Case) -> Outcome:
    try:
        fit = case.make()
        difference, where = _compared(comm, fit, case.micro_batch_size)
    except Skip as skip:
        return Outcome(SKIPPED, text=str(skip))
    except Exception as error:  # one class does not stop the others
        return Outcome(
            ERROR, text=_first_line(error), is_told=isinstance(error, DistgradError), trace=traceback.format_exc()
        )
    return Outcome(OK if difference <= TOLERANCE else DIFFERS, difference, where)


def _first_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _compared(comm: Communicator, fit: Fit, micro_batch_size: int | None) -> tuple[float, str]:
    """Return the largest difference, and where it is."""
    model, oracle = build(comm, fit, micro_batch_size=micro_batch_size)
    before = oracle.get_weights()
    how = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **fit.fit}
    expected, history = (one.fit(fit.x, fit.y, **how).history for one in (oracle, model))
    apart = [(_apart(history.get(key), values), f"history {key}") for key, values in expected.items()]
    _require_same_keys(history, expected)
    paths = [weight.path.split("/", 1)[-1] for weight in oracle.weights]
    weights = list(zip(model.get_weights(), oracle.get_weights(), paths, strict=True))
    apart += [(_apart(found, wanted), f"weight {path}") for found, wanted, path in weights]
    if all(np.array_equal(old, new) for old, new in zip(before, oracle.get_weights(), strict=True)):
        raise RuntimeError("Keras alone moves no weight: this compares nothing")
    given = {"batch_size": 5, "verbose": 0, "return_dict": True, **fit.fit}
    wanted, found = (one.evaluate(fit.x, fit.y, **given) for one in (oracle, model))
    _require_same_keys(found, wanted)
    apart += [(_apart(found.get(key), value), f"evaluate {key}") for key, value in wanted.items()]
    return max(apart)


def _require_same_keys(found: Options, expected: Options) -> None:
    if set(found) - LOGGED != set(expected):
        raise RuntimeError(f"logs {sorted(set(found) - LOGGED)} instead of {sorted(expected)}")


def _apart(found: Any, expected: Any) -> float:
    """Return how far numbers are apart, relative to the largest of those expected if that is above 1."""
    if found is None:
        return math.inf
    one, other = (np.asarray(value, np.float64) for value in (found, expected))
    if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return math.inf
    finite = np.isfinite(other)
    scale = max(1.0, np.abs(other[finite]).max(initial=0.0))
    return float(np.abs(one - other)[finite].max(initial=0.0) / scale)
