"""The private names of Keras and tf.data that distgrad needs, each behind a function with a plain name.

A release of Keras or TensorFlow may move or rename any of them. tests/unit/test_keras_internals.py tries each one and
says which is gone; the docstring here says which it is, why no public one does, and what breaks without it. No other
module imports `keras.src` or `tensorflow.python`, or reads a private attribute of an object of theirs.
"""

import contextlib
import contextvars
import itertools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import Variable as AnyVariable
from keras.src.backend.common import global_state
from keras.src.losses import loss as loss_module
from keras.src.trainers.compile_utils import CompileLoss
from keras.src.trainers.data_adapters import array_slicing, get_data_adapter
from keras.src.trainers.epoch_iterator import EpochIterator
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


def is_keras_variable(thing: Any) -> bool:
    """Return whether something is a Keras variable, such as layers and optimizers have.

    `keras.src.backend.Variable`: before Keras 3.7 the public `keras.Variable` is a subclass, of which the variables of
    layers are none.
    """
    return isinstance(thing, AnyVariable)


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

    `CompileLoss._flat_losses`, or `flat_losses` and `flat_loss_weights` before Keras 3.7: there is no public list.
    Without it, workers with different losses are not found.
    """
    return [(loss, factor) for loss, factor in _losses_of(compiled) if loss is not None]


def logged_factors(compiled: Any) -> list[float]:
    """List what the loss of each output is multiplied by before it is logged: 1, and before Keras 3.7 its weight.

    `CompileLoss.flat_loss_weights`, see `weighted_losses`. Without it, the logs of several outputs are not Keras's.
    """
    is_weighted = hasattr(compiled, "flat_losses")
    return [factor if is_weighted and factor is not None else 1.0 for _, factor in weighted_losses(compiled)]


def _losses_of(compiled: Any) -> list[tuple[Any, Any]]:
    if hasattr(compiled, "flat_losses"):
        return list(zip(compiled.flat_losses, compiled.flat_loss_weights, strict=True))
    return [(entry.loss, entry.loss_weights) for entry in compiled._flat_losses]


def matched_losses(compiled: Any, y: Any, y_pred: Any, sample_weight: Any) -> list[MatchedLoss]:
    """Match the losses of a `CompileLoss` with a batch, without adding them up.

    `CompileLoss._flat_losses` (see `weighted_losses`) and `_metrics`: called, it gives one number, a sum of means.
    Without them, a model with several losses cannot be trained.

    Args:
        compiled: it is built on its first batch.
        y, y_pred, sample_weight: nests of (b, ...) tensors.
    """
    found: list[MatchedLoss] = []

    def collector(loss: Any, factor: Any) -> Any:
        def collect(y_true: Any, y_pred: Any, weight: Any = None) -> tf.Tensor:
            found.append(MatchedLoss(loss, y_true, y_pred, weight, 1.0 if factor is None else factor))
            return tf.zeros(())

        return None if loss is None else collect

    if not compiled.built:
        compiled(y, y_pred, sample_weight)  # it builds itself only so
    collecting = CompileLoss.__new__(CompileLoss)  # a shallow copy, which Keras's objects refuse to be
    vars(collecting).update(vars(compiled))
    collectors = [collector(*of) for of in _losses_of(compiled)]
    if hasattr(compiled, "flat_losses"):
        collecting.flat_losses = collectors
    else:
        pairs = zip(compiled._flat_losses, collectors, strict=True)
        collecting._flat_losses = [entry._replace(loss=collect) for entry, collect in pairs]
    collecting._metrics = [None] * len(collectors)  # so that it updates no output's mean loss
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
    own code computes are too small under a strategy. Keras before 3.8 has neither, and divides nothing.
    """
    for name in {"scale_loss_for_distribution", "unscale_loss_for_distribution"} & set(vars(loss_module)):
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

    `global_state` with the key "global_seed_generator": only functions that draw from it are public. Without it, a
    resumed training draws other numbers than one that was not broken.
    """
    return global_state.get_global_attribute("global_seed_generator")


def set_global_seed_generator(generator: keras.random.SeedGenerator | None) -> None:
    """Set the generator that `global_seed_generator` returns, which says why."""
    global_state.set_global_attribute("global_seed_generator", generator)


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


def ends_before_first_epoch() -> bool:
    """Return whether Keras tells data the end of an epoch before it reads them for the first time, too.

    `EpochIterator.reset`, which does so since Keras 3.7: no argument tells. Without it, a PyDataset that shuffles at
    the end of each epoch comes in another order than in Keras alone.
    """
    return hasattr(EpochIterator, "reset")


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


# ---- an optimizer of slices


def optimizer_of_slices(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return an optimizer with the settings, the learning rate and the number of steps of another one, not built.

    `Optimizer.__dict__`: what a user has set is in attributes, and some of it in no config (excluded variables, a
    function as learning rate). The learning rate and the number of steps are the same variables, so that a callback
    sets and reads them as before; lists and dicts are copied. Without it, a worker could not update a part of the
    weights by the same rules.
    """
    twin = object.__new__(type(optimizer))
    vars(twin).update({name: value for name, value in vars(optimizer).items() if not name.startswith("_self_")})
    vars(twin)["_tracker"] = type(optimizer._tracker)(dict(optimizer._tracker.config))
    forget_variables(twin)
    for name, value in list(vars(twin).items()):
        if type(value).__name__.startswith("Tracked"):  # by the tracker of the other one
            setattr(twin, name, value.copy())
    return twin


def config_with_rate(optimizer: keras.optimizers.Optimizer, rate: float) -> dict[str, Any]:
    """Return an optimizer's config, with another learning rate.

    `Optimizer._learning_rate`, of a twin: a function as learning rate is in no config without a warning.
    """
    twin = optimizer_of_slices(optimizer)
    vars(twin)["_learning_rate"] = keras.Variable(rate)
    return dict(twin.get_config())


def forget_variables(optimizer: keras.optimizers.Optimizer) -> None:
    """Take an optimizer back to before it was built, but for its learning rate and number of steps.

    `Optimizer._variables`, `_trainable_variables`, `_trainable_variables_indices`, `_tracker`: what `build` fills, and
    Keras builds an optimizer once. Without it, the state of the whole model would stay in memory.
    """
    slots, tracker = optimizer_slots(optimizer), vars(optimizer).pop("_tracker")
    kept = [v for v in optimizer._variables if v is optimizer._iterations or v is optimizer._learning_rate]
    # As attributes, so that TensorFlow, which notes what they are, forgets what they were.
    optimizer.built, optimizer._variables, optimizer._trainable_variables = False, kept, []
    optimizer._trainable_variables_indices = {}
    optimizer._exclude_from_weight_decay_cache = {}
    is_variable, _ = tracker.config["variables"]
    tracker.config["variables"] = is_variable, optimizer._variables
    tracker.stored_ids["variables"] = set(map(id, kept))
    optimizer._tracker = tracker
    for name in slots:
        setattr(optimizer, name, [])


def optimizer_slots(optimizer: keras.optimizers.Optimizer) -> dict[str, list[keras.Variable | None]]:
    """Return the lists in which an optimizer has a variable, or None, for each variable that it was built for.

    `Optimizer.__dict__`, `_trainable_variables`: the public `variables` do not tell what belongs to which variable.
    """
    size = len(optimizer._trainable_variables)
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if isinstance(value, list)
        and name not in ("_trainable_variables", "_variables")
        and 0 < size == len(value)
        and all(one is None or is_keras_variable(one) for one in value)
    }


def optimizer_scalars(optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """Return the variables that an optimizer has for the whole model, besides its learning rate and number of steps.

    `Optimizer.__dict__`, as above: Nadam keeps a product there.
    """
    known = {"_iterations", "_learning_rate"}
    return {name: value for name, value in vars(optimizer).items() if is_keras_variable(value) and name not in known}


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Return whether an optimizer decays a variable's weights.

    `Optimizer._use_weight_decay`: the only one that knows which were excluded.
    """
    return optimizer.weight_decay is not None and bool(optimizer._use_weight_decay(variable.value))


def set_decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable, value: bool) -> None:
    """Let an optimizer decay a variable's weights or not.

    `Optimizer._exclude_from_weight_decay_cache`, `_var_key`: the public method goes by names.
    """
    optimizer._exclude_from_weight_decay_cache[optimizer._var_key(variable)] = value


def build_scaling(optimizer: keras.optimizers.LossScaleOptimizer) -> None:
    """Build an optimizer that scales the loss, without the one in it.

    `Optimizer.build`, replaced in the instance: the outer one calls it. Without it, the inner one would have the state
    of the whole model for a moment.
    """
    vars(optimizer.inner_optimizer)["build"] = lambda _: None
    try:
        optimizer.build([])
    finally:
        del vars(optimizer.inner_optimizer)["build"]


def replaced_methods(optimizer: keras.optimizers.Optimizer) -> set[str]:
    """Return the names of the methods of Keras's optimizers that an instance, or a user's own class, replaces."""
    own = itertools.takewhile(lambda kind: not is_of_keras(kind), type(optimizer).__mro__)
    names = {name for replacing in (optimizer, *own) for name in vars(replacing)}
    return {name for name in names if callable(getattr(keras.optimizers.Optimizer, name, None))}


def holds_optimizers(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether an optimizer is made of others.

    `Optimizer.__dict__`, as above.
    """
    values = keras.tree.flatten([value for value in vars(optimizer).values() if isinstance(value, (list, tuple, dict))])
    return any(isinstance(value, keras.optimizers.Optimizer) for value in [*vars(optimizer).values(), *values])


def saves_after(callback: keras.callbacks.Callback, batch: int) -> bool:
    """Return whether a callback of Keras's that saves every so many batches is about to do so, after this one.

    `ModelCheckpoint` and `BackupAndRestore`: `_last_batch_seen`, `_batches_seen_since_last_saving`. Without it, an
    optimizer would have to have its whole state after each batch.
    """
    every = getattr(callback, "save_freq", None)
    if isinstance(every, bool) or not isinstance(every, int):
        return False
    last = callback._last_batch_seen
    more = batch + 1 if last is None or batch <= last else batch - last
    return bool(callback._batches_seen_since_last_saving + more >= every)
