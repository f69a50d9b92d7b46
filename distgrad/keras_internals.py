"""The private names of Keras and tf.data that distgrad needs, each behind a function with a plain name.

A release of Keras or TensorFlow may move or rename any of them. tests/unit/test_keras_internals.py tries each one and
says which is gone; the docstring here says which it is, why no public one does, and what breaks without it. No other
module imports `keras.src` or `tensorflow.python`, or reads a private attribute of an object of theirs.
"""

import contextlib
import contextvars
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.losses import loss as loss_module
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.trainers.compile_utils import CompileLoss
from keras.src.trainers.data_adapters import array_slicing, get_data_adapter
from tensorflow.python.data.ops.shuffle_op import _ShuffleDataset

# ---- models and layers


def flat_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List a model or layer and all layers within it, at any depth.

    `Layer._flatten_layers`: the public `Model.layers` leaves out what layers hold. Without it, embeddings and
    synchronized batch normalization inside of other layers are not found.
    """
    return list(layer._flatten_layers())


def is_of_keras(thing: Any) -> bool:
    """Return whether a function, or the class of an object, is one of Keras's own and not a user's.

    `keras.src` in the name of its module: the public modules, such as `keras.layers`, are no class's own. Without it,
    gradients that Keras always computes densely are looked at as if they might be sparse, and losses and metrics of
    Keras's own are tried as a user's are.
    """
    module = getattr(thing if callable(thing) and hasattr(thing, "__name__") else type(thing), "__module__", "")
    return module.startswith("keras.src")


class NoStrategy:
    """Stand-in for a model's strategy that lets Keras's loops run as if there were none; see `leave_strategy`."""

    def experimental_distribute_dataset(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the dataset: this worker reads all of it."""
        return dataset

    def run(self, function: Callable[..., Any], args: Sequence[Any] = ()) -> Any:
        """Call the function here, once."""
        return function(*args)


def leave_strategy(model: keras.Model) -> None:
    """Let Keras run the loops of a model that was made in a strategy's scope as if it had been made outside.

    `Model._distribute_strategy` and `_maybe_symbolic_build`: the public `distribute_strategy` cannot be set. Without
    them, Keras hands each batch to all replicas itself, and builds the model on a batch that it takes out of the data.
    None for a strategy is not enough: Keras then takes that of an open scope, where `predict` gives each row once a
    replica, and `compile` turns XLA on.
    """
    if model._distribute_strategy is not None:
        model._distribute_strategy = NoStrategy()
        model._maybe_symbolic_build = lambda **_: None  # the first step builds it, on every worker alike


def initial_epoch(model: keras.Model) -> int:
    """Return the epoch at which a callback of `fit` wants it to begin; 0 if none does.

    `Model._initial_epoch`: `BackupAndRestore` writes it, and nothing else tells what it has restored. Without it, the
    workers begin at different epochs.
    """
    return model._initial_epoch or 0


def set_initial_epoch(model: keras.Model, epoch: int) -> None:
    """Let `fit`, which is about to begin, begin at an epoch; 0 leaves it to `fit`'s own argument.

    `Model._initial_epoch`: `fit` reads its public argument before callbacks run. Without it, no fit goes on where it
    was left.
    """
    model._initial_epoch = epoch or None


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """List the variables that an optimizer was built for.

    `Optimizer._trainable_variables`: the public `variables` are the optimizer's own. Without it, the optimizer of
    another model fails within a step instead of before it.
    """
    return list(optimizer._trainable_variables)


@contextlib.contextmanager
def without_summing(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Let an optimizer that is applied in a replica take its gradients as they are, while this context lasts.

    `Optimizer._all_reduce_sum_gradients`: under a strategy it sums them over the replicas, and no argument turns that
    off. Without it, gradients that are summed already are multiplied by the number of workers.
    """
    parts = [optimizer, getattr(optimizer, "inner_optimizer", optimizer)]
    for part in parts:
        vars(part)["_all_reduce_sum_gradients"] = list
    try:
        yield
    finally:
        for part in parts:
            vars(part).pop("_all_reduce_sum_gradients", None)


def hold_plain_value(variable: keras.Variable) -> None:
    """Replace the value of a variable, which a strategy keeps once a replica, by one plain `tf.Variable`.

    `Variable._value`: the public `assign` keeps the kind of value. Without it, each read of a metric's state under a
    strategy adds up the replicas' copies, all of which hold the sum already.
    """
    variable._value = tf.Variable(variable.numpy(), trainable=False, name=variable.name)


# ---- losses


class MatchedLoss(NamedTuple):
    """One of the losses that `compile` was given, and what it is computed from.

    Attributes:
        loss: a `keras.losses.Loss`.
        y_true, y_pred, sample_weight: (b, ...) those of the loss's output; sample_weight may be None.
        factor: its weight in the sum of all losses.
    """

    loss: keras.losses.Loss
    y_true: Any
    y_pred: Any
    sample_weight: Any
    factor: Any


def compile_loss(model: keras.Model) -> Any:
    """Return what `compile` made of its losses and their weights, a `CompileLoss`; None if it was given none.

    `Model._compile_loss`: the public `loss` has no weights, and does not say to which output each one belongs. Without
    it, `fit` has no loss.
    """
    return model._compile_loss


def as_compile_loss(loss: Any, model: keras.Model) -> Any:
    """Turn a list or dict of losses into what `compile` makes of it; None for what is no list or dict.

    `CompileLoss`: it alone knows how Keras matches losses and outputs. Without it, a step takes models with a single
    loss only.
    """
    if isinstance(loss, CompileLoss):
        return loss
    several = isinstance(loss, (list, tuple, dict))
    return CompileLoss(loss, None, output_names=getattr(model, "output_names", None)) if several else None


def weighted_losses(compiled: Any) -> list[tuple[keras.losses.Loss, Any]]:
    """List the losses of a `CompileLoss` that was called once, each with its factor, None for 1.

    `CompileLoss._flat_losses`: there is no public list. Without it, workers with different losses are not found.
    """
    return [(entry.loss, entry.loss_weights) for entry in compiled._flat_losses]


def matched_losses(compiled: Any, y: Any, y_pred: Any, sample_weight: Any) -> list[MatchedLoss]:
    """Match the losses of a `CompileLoss` with a batch, without adding them up.

    `CompileLoss._flat_losses` and `_metrics`: called, it gives one number, a sum of means. Without them, a model with
    several losses cannot be trained.

    Args:
        compiled: it is built on its first batch.
        y, y_pred, sample_weight: nests of (b, ...) tensors.
    """
    found: list[MatchedLoss] = []

    def collector(entry: Any) -> Any:
        def collect(y_true: Any, y_pred: Any, weight: Any = None) -> tf.Tensor:
            factor = 1.0 if entry.loss_weights is None else entry.loss_weights
            found.append(MatchedLoss(entry.loss, y_true, y_pred, weight, factor))
            return tf.zeros(())

        return entry._replace(loss=collect)

    if not compiled.built:
        compiled(y, y_pred, sample_weight)  # it builds itself only so
    collecting = CompileLoss.__new__(CompileLoss)  # a shallow copy, which Keras's objects refuse to be
    vars(collecting).update(vars(compiled))
    collecting._flat_losses = [collector(entry) for entry in compiled._flat_losses]
    collecting._metrics = [None] * len(compiled._flat_losses)  # so that it updates no output's mean loss
    collecting(y, y_pred, sample_weight)
    return found


def function_of_metric(metric: keras.metrics.Metric) -> Any:
    """Return the function (y_true, y_pred) -> values that a metric averages; None if it has none.

    `MeanMetricWrapper._fn`: the public config tells its name only. Without it, a user's function passes for one of
    Keras's own.
    """
    return getattr(metric, "_fn", None)


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """Return the metric that keeps the mean loss of an epoch.

    `Model._loss_tracker`: the public `metrics` have it, too, but a model may leave it out of them. Without it, `fit`
    logs no loss.
    """
    return model._loss_tracker


def keras_mask(tensor: Any) -> tf.Tensor | None:
    """Return the mask that a layer left on its output, (b, ...) bool; None if it left none.

    `_keras_mask`: `keras.src.backend.get_keras_mask` is not public either. Without it, masked entries count in losses.
    """
    return getattr(tensor, "_keras_mask", None)


def set_keras_mask(tensor: tf.Tensor, mask: tf.Tensor | None) -> None:
    """Leave a mask on an output, as a layer does; see `keras_mask`."""
    if mask is not None:
        tensor._keras_mask = mask


_as_if_alone: contextvars.ContextVar[bool] = contextvars.ContextVar("as_if_alone", default=False)


@contextlib.contextmanager
def without_replica_scaling() -> Iterator[None]:
    """Let Keras's losses give the mean over the rows they see, under a strategy, too, while this context lasts.

    `loss.scale_loss_for_distribution` and `unscale_loss_for_distribution`: there, Keras divides means by the number of
    replicas and leaves the rest to an optimizer that sums. No argument turns that off. Without it, losses that a user's
    own code computes are too small under a strategy.
    """
    for name in ("scale_loss_for_distribution", "unscale_loss_for_distribution"):
        function = getattr(loss_module, name)
        if not isinstance(function, _UnlessAlone):
            setattr(loss_module, name, _UnlessAlone(function))
    token = _as_if_alone.set(True)
    try:
        yield
    finally:
        _as_if_alone.reset(token)


class _UnlessAlone:
    """A function of a loss that gives it back as it is within `without_replica_scaling`."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, value: Any) -> Any:
        return value if _as_if_alone.get() else self._function(value)


@contextlib.contextmanager
def outside_stateless_scope() -> Iterator[None]:
    """Let assignments to Keras variables take effect within a `StatelessScope`, while this context lasts.

    `global_state` with the key "stateless_scope": a scope has no public way out. Without it, an optimizer that a user's
    own `train_step` calls could not update the weights there and then.
    """
    scope = global_state.get_global_attribute("stateless_scope")
    global_state.set_global_attribute("stateless_scope", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("stateless_scope", scope)


# ---- batch normalization

Moments = Callable[[tf.Tensor, tf.Tensor | None], tuple[tf.Tensor, tf.Tensor]]


class Watcher(Protocol):
    """Something that is told of assignments."""

    def note(self) -> None:
        """Take note of one."""


class _Watchers:
    """The watchers of a variable, while they live. A copy of the variable has none."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Watcher] = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Watchers":
        return _Watchers()


def tell_assignments(variable: keras.Variable, watcher: Watcher) -> None:
    """Let a watcher note whenever the program assigns a variable outside of a graph.

    `Variable._direct_assign`: whatever sets a variable (`assign`, `set_weights`, `load_weights`) ends there.
    """
    attributes = vars(variable)
    if "_distgrad_watchers" not in attributes:
        attributes["_distgrad_watchers"] = _Watchers()
        attributes["_direct_assign"] = types.MethodType(_assign_and_tell, variable)
    attributes["_distgrad_watchers"].alive.add(watcher)


def _assign_and_tell(variable: keras.Variable, value: Any) -> None:
    if tf.executing_eagerly():
        for watcher in vars(variable)["_distgrad_watchers"].alive:
            watcher.note()
    type(variable)._direct_assign(variable, value)


def replace_moments(layer: keras.layers.BatchNormalization, moments: Moments) -> None:
    """Let a layer ask a function, (inputs, mask) -> (mean, variance), for the moments of its inputs.

    `BatchNormalization._moments`: Keras's own `synchronized=True` knows the replicas of a strategy only. Without it,
    layers that ask to be synchronized normalise over one worker's rows.
    """
    vars(layer)["_moments"] = moments


def own_moments(layer: keras.layers.BatchNormalization) -> Moments:
    """Return the function that computes a layer's moments in Keras; see `replace_moments`."""

    def moments(inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return type(layer)._moments(layer, inputs, mask)

    return moments


# ---- random numbers


def is_random_state(variable: keras.Variable) -> bool:
    """Return whether a variable is the state of a layer's random numbers.

    `seed_generator_state`, the name that `SeedGenerator` gives it: a model's public variables are not told apart by
    kind. Without it, all workers draw the same dropout.
    """
    return variable.name == "seed_generator_state"


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """Return the generator behind `keras.random` where no seed is given; None until it was used.

    `global_state` and `GLOBAL_SEED_GENERATOR`: only functions that draw from it are public. Without it, a resumed
    training draws other numbers than one that was not broken.
    """
    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


def set_global_seed_generator(generator: keras.random.SeedGenerator) -> None:
    """Set the generator that `global_seed_generator` returns, which says why."""
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)


# ---- data of fit


def data_adapter(arguments: Mapping[str, Any]) -> Any:
    """Return Keras's reader of what `fit` or `evaluate` was given.

    `get_data_adapter`: for PyDatasets with worker processes, generators, DataLoaders, class weights, and what Keras
    says of data that it does not take, there is nothing public. Without it, `fit` takes datasets only.

    Args:
        arguments: x, y, sample_weight, batch_size, steps_per_epoch, shuffle, class_weight; all but x may be left out.

    Returns:
        An object with `num_batches`, `batch_size`, `get_tf_dataset()`, `on_epoch_begin()` and `on_epoch_end()`.
    """
    return get_data_adapter(**arguments)


def are_arrays(data: Any) -> bool:
    """Return whether all leaves of a nest are None or something that Keras takes for an array.

    `array_slicing.can_slice_array`: which kinds these are, no public function says. Without it, `fit` does not know
    which data it may shuffle.
    """
    return all(array_slicing.can_slice_array(leaf) for leaf in keras.tree.flatten(data))


def split_rows(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Split a nest of arrays into (the first rows, the last ones), as `fit(validation_split=...)` does.

    `array_slicing.train_validation_split`: only `fit` itself is public. Without it, that argument cannot be honoured.

    Raises:
        ValueError: not all are arrays, or one part would have no rows.
    """
    first, last = array_slicing.train_validation_split(arrays, validation_split)
    return first, last


def arrays_to_gather(adapter: Any) -> Any:
    """Return the arrays of a `data_adapter` in a form for `gather_rows`.

    `ArrayDataAdapter._inputs` and `array_slicing.convert_to_sliceable`: they have cast, weighted by class and checked
    all that Keras would, from any kind of array. Without them, `fit` would have to do so for each kind itself.
    """
    arrays = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    return keras.tree.lists_to_tuples(arrays)


def gather_rows(arrays: Any, rows: np.ndarray) -> Any:
    """Gather rows of arrays that are dense, ragged or sparse.

    `array_slicing.TensorflowSparseWrapper` and `slice_tensorflow_sparse_wrapper`: `tf.gather` takes no sparse tensors.
    Without them, `fit` takes none.

    Args:
        arrays: a nest that `arrays_to_gather` gave.
        rows: (b,) int64 numbers of rows.

    Returns:
        A nest of (b, ...) tensors.
    """

    def gather(part: Any) -> Any:
        if isinstance(part, np.ndarray):
            return tf.convert_to_tensor(part[rows])  # and not all of it
        if isinstance(part, array_slicing.TensorflowSparseWrapper):
            return array_slicing.slice_tensorflow_sparse_wrapper(part, rows)
        return None if keras.tree.is_nested(part) else tf.gather(part, rows)

    return keras.tree.traverse(gather, arrays)


# ---- tf.data


def inputs_of(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    """List the datasets that a dataset reads from.

    `Dataset._inputs`: nothing public tells. Without it, the shuffles in a pipeline are not found.
    """
    return list(dataset._inputs())


def is_shuffle(dataset: tf.data.Dataset) -> bool:
    """Return whether a dataset is what `Dataset.shuffle` gave.

    `_ShuffleDataset`: the public type is the same for all datasets. Without it, a resumed training reads shuffled data
    in another order.
    """
    return isinstance(dataset, _ShuffleDataset)


def seeds_of_shuffle(dataset: tf.data.Dataset) -> tuple[int, int]:
    """Return the two seeds of a dataset for which `is_shuffle` holds.

    `_ShuffleDataset._seed` and `_seed2`: a dataset does not tell with what it was made. Without them, nobody warns when
    data come in another order after a resume.
    """
    return int(dataset._seed), int(dataset._seed2)


class CountedDataset(tf.data.Dataset):
    """A dataset that counts its iterators, and says how many batches Keras is to count on.

    `Dataset._inputs`, which a subclass must have: the public `assert_cardinality` fails where this worker has fewer
    batches than another, and no public function counts iterators, of which each draws an order of its own of shuffled
    data. Without it, a fit is not resumed in the same order.

    Attributes:
        iterators: number of iterators that were made so far.

    Args:
        dataset: where the batches come from.
        batches: how many; None if that is not known.
        sharing: what shares out its batches, for whoever reads its iterators; they have it as an attribute.
        iterate: makes an iterator over the batches, instead of the dataset, which tells their type alone.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        batches: int | None,
        sharing: Any = None,
        iterate: Callable[[], Iterator[Any]] | None = None,
    ) -> None:
        self._dataset, self._batches, self._sharing, self.iterators = dataset, batches, sharing, 0
        self._iterate: Callable[[], Any] = super().__iter__ if iterate is None else iterate
        super().__init__(tf.data.experimental.to_variant(dataset))

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> Any:
        """The type of a batch."""
        return self._dataset.element_spec

    def cardinality(self) -> tf.Tensor:
        """Return the number of batches, () int64, or `tf.data.UNKNOWN_CARDINALITY`."""
        return tf.constant(tf.data.UNKNOWN_CARDINALITY if self._batches is None else self._batches, tf.int64)

    def __iter__(self) -> Iterator[Any]:
        self.iterators += 1
        iterator = self._iterate()
        iterator.sharing = self._sharing
        return iterator
