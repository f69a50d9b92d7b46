"""`distribute(model)`: compile, fit, evaluate and predict as Keras documents them, on all workers.

Keras runs its own loop over epochs, callbacks and logs. What is put in its way is little: the data of a worker
(shares.py), a train function whose every call is one `DistributedStep`, a test function whose every call is one
`Evaluation`, and metrics that ride along in the step's one sum (metrics.py).

The methods are replaced in the instance, not in its class, so that what is saved is a plain Keras model.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from distgrad.checkpoint.checkpoint import Checkpoint
from distgrad.checkpoint.fit_progress import FitProgress
from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import no_rows_like
from distgrad.data.sharding import rows_of_workers
from distgrad.errors import FitMismatch, ForeignOptimizer, UnsupportedModel
from distgrad.fit.callbacks import Together, on_this_worker
from distgrad.fit.data import Share, share_of
from distgrad.objective.metrics import MetricSums
from distgrad.step.distributed_step import DistributedStep
from distgrad.step.evaluation import Evaluation

OWN = ("train_step", "test_step", "compute_loss", "make_train_function", "make_test_function", "fit", "evaluate")
TOLD = ("gradient_norm", "gradient_sum", "gradient_zeros", "noise_scale")  # what the logs hold besides metrics


def distribute(
    model: keras.Model, comm: Communicator, micro_batch_size: int | None = None, **step_options: Any
) -> keras.Model:
    """Train a Keras model on all workers with its own `compile`, `fit`, `evaluate` and `train_on_batch`.

    `fit` is given what it is given in one process: arrays, PyDatasets and generators hold the global data, the same on
    every worker, and `batch_size` is that of the global batch. A `tf.data.Dataset` is this worker's own data, as
    `comm.shard(dataset)` gives it. Logs are those of the global data on every worker, with `gradient_sum` and
    `gradient_norm` of the last step. Only the root shows progress and runs callbacks that write files.

    Args:
        model: compiled or not, built or not; saved models know nothing of distgrad.
        comm: what `distgrad.connect()` gave.
        micro_batch_size: rows that a worker differentiates at once.
        step_options: of `DistributedStep`; `log_every` is 0 unless given.

    Returns:
        The same model.

    Raises:
        UnsupportedModel: its class has a train step, a test step or a loss computation of its own.
    """
    own = [name for name in OWN if getattr(type(model), name) is not getattr(keras.Model, name)]
    if own:
        raise UnsupportedModel(
            f"model {model.name!r} has its own {own[0]}()",
            "leave it to Keras, or train in a loop of your own with distgrad.DistributedStep",
            everywhere=True,
        )
    Trainer(model, comm, {"micro_batch_size": micro_batch_size, "log_every": 0, **step_options})
    return model


class Trainer:
    """What stands between a model's methods and Keras's."""

    def __init__(self, model: keras.Model, comm: Communicator, options: dict[str, Any]) -> None:
        self._model, self._comm, self._options = model, comm, options
        self._step: DistributedStep | None = None
        self._fit_progress: FitProgress | None = None
        model._maybe_symbolic_build = lambda **_: None  # the first step builds the model, on every worker alike
        if model._distribute_strategy is not None:
            model._distribute_strategy = NoStrategy()
        model.train_function = model.test_function = None
        model.make_train_function, model.make_test_function = self.make_train_function, self.make_test_function
        model.fit, model.evaluate, model.predict = self.fit, self.evaluate, self.predict
        model._flatten_metrics_in_order = self._flatten

    # ---- what a user calls

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """See `keras.Model.fit` and `distribute`.

        Raises:
            FitMismatch: workers were given different arguments or callbacks.
            TooFewSamples: fewer rows than workers.
        """
        given = self._bound("fit", args, kwargs)
        if given["validation_split"] and given["validation_data"] is None:
            arrays = tuple(given[name] for name in ("x", "y", "sample_weight"))
            kept, given["validation_data"] = array_slicing.train_validation_split(arrays, given["validation_split"])
            given["x"], given["y"], given["sample_weight"] = kept
        own = self._share(given, given["batch_size"], given["steps_per_epoch"], given["shuffle"], given["class_weight"])
        if given["validation_data"] is not None:
            given["validation_data"] = self._validation(given)
        names = ("epochs", "initial_epoch", "steps_per_epoch", "validation_steps", "validation_freq")
        self._agree(own, [f"{name}={given[name]}" for name in names], given)
        given |= {"x": own, "y": None, "sample_weight": None, "class_weight": None, "validation_split": 0.0}
        step = self._begin(own, given["callbacks"])
        return self._keras("fit", given, Together(self._comm, step.start_alike))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """See `keras.Model.evaluate` and `distribute`."""
        given = self._bound("evaluate", args, kwargs)
        given |= given.pop("kwargs", {})
        if not isinstance(given["x"], DataAdapter):
            own = self._share(given, given["batch_size"], given["steps"], shuffle=False)
            self._agree(own, [f"steps={given['steps']}"], given)
            given |= {"x": own, "y": None, "sample_weight": None}
        return self._keras("evaluate", given)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """See `keras.Model.predict`. Every worker predicts all that it is given."""
        return self._keras("predict", self._bound("predict", args, kwargs))

    # ---- what Keras calls

    def make_train_function(self, force: bool = False) -> None:
        """Set `model.train_function`."""
        if self._model.train_function is None or force:
            self._step = self._training_step()
            self._model.optimizer = self._step.optimizer
            self._model.train_function = self._function(self._step)

    def make_test_function(self, force: bool = False) -> None:
        """Set `model.test_function`."""
        if self._model.test_function is None or force:
            self._model.test_function = self._function(self._evaluation())

    def _training_step(self) -> DistributedStep:
        model, options = self._model, {"jit_compile": bool(self._model.jit_compile), **self._options}
        _require_own_optimizer(model)
        step = DistributedStep(model, model._compile_loss, model.optimizer, comm=self._comm, **options)
        step.run_eagerly = model.run_eagerly
        # Where nobody can ask for it, the optimizer may compute in place.
        step.keeps_gradient = bool(options.get("listeners")) or options.get("on_nonfinite") == "raise"
        step.carry(MetricSums(model, logs_gradient=True))
        return step

    def _evaluation(self) -> Evaluation:
        model, options = self._model, {"jit_compile": bool(self._model.jit_compile), **self._options}
        known = {name: options[name] for name in ("micro_batch_size", "reduction", "jit_compile") if name in options}
        evaluation = Evaluation(model, model._compile_loss, comm=self._comm, **known)
        evaluation.run_eagerly = model.run_eagerly
        evaluation.carry(MetricSums(model, logs_gradient=False))
        return evaluation

    def _function(self, step: Any) -> Callable[[Any], Mapping[str, Any]]:
        """A function that takes the next steps of an iterator; it ends when the last worker is done."""
        current: list[Any] = [None, None]

        def function(iterator: Any) -> Mapping[str, Any]:
            if not isinstance(iterator, tf.data.Iterator):
                return step(*self._own_part(next(iterator))).keras_logs()
            steps = self._model.steps_per_execution
            if self._fit_progress is not None and self._fit_progress.step is step:
                steps = self._fit_progress.skip(steps)
                if not steps:
                    step.join(no_rows_like(iterator.element_spec))
                    current[:] = [iterator, iter(())] if self._fit_progress.data_exhausted else [None, None]
                    return self._fit_progress.logs
            if current[0] is not iterator:
                current[:] = [iterator, step.epoch(iterator)]
            return _last_of(current[1], steps).keras_logs()

        return function

    def _own_part(self, batch: tuple[Any, ...]) -> Any:
        """This worker's rows of one global batch of arrays."""
        first, last, size = self._comm.rank, self._comm.rank + self._comm.span, self._comm.size

        def cut(array: Any) -> tf.Tensor:
            return rows_of_workers(tf.convert_to_tensor(array), first, last, size)

        return [None if part is None else keras.tree.map_structure(cut, part) for part in batch]

    def _flatten(self, logs: dict[str, Any]) -> Any:
        """`train_on_batch` returns a plain list of what was compiled, as without distgrad."""
        plain = {name: value for name, value in logs.items() if name not in TOLD}
        return type(self._model)._flatten_metrics_in_order(self._model, plain)

    # ---- what they have in common

    def _bound(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a method by name, defaults included."""
        bound = inspect.signature(getattr(keras.Model, method)).bind(self._model, *args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != "self"}

    def _share(
        self, given: dict[str, Any], batch_size: Any, steps: Any, shuffle: Any, class_weight: Any = None
    ) -> Share:
        data = {name: given[name] for name in ("x", "y", "sample_weight")}
        how = {"batch_size": batch_size, "steps_per_epoch": steps, "shuffle": shuffle, "class_weight": class_weight}
        return share_of(self._comm, {**data, **how})

    def _validation(self, given: dict[str, Any]) -> Share:
        x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(given["validation_data"])
        batch_size = given["validation_batch_size"] or given["batch_size"]
        data = {"x": x, "y": y, "sample_weight": sample_weight}
        return self._share(data, batch_size, given["validation_steps"], shuffle=False)

    def _agree(self, own: Share, settings: list[str], given: dict[str, Any]) -> None:
        """Workers that loop differently would wait for one another for ever."""
        lines = [*settings, *own.settings(), *on_this_worker(given["callbacks"], is_root=False).names]
        agreement.require_same(self._comm, lines, "argument", FitMismatch)

    def _begin(self, own: Share, callbacks: Any) -> DistributedStep:
        """Make the step of this call of fit, and let checkpoints know both."""
        self._model._assert_compile_called("fit")
        self.make_train_function()
        step = cast(DistributedStep, self._step)
        self._fit_progress = FitProgress(step, own)
        for callback in on_this_worker(callbacks, is_root=True).callbacks:
            if isinstance(callback, Checkpoint):
                callback.set_fit_progress(self._fit_progress)
        return step

    def _keras(self, method: str, given: dict[str, Any], *ours: keras.callbacks.Callback) -> Any:
        """Run Keras's own method, silently except on the root."""
        if not self._comm.is_root:
            given["verbose"] = 0
        if not isinstance(given["callbacks"], keras.callbacks.CallbackList):
            kept = on_this_worker(given["callbacks"], self._comm.is_root).callbacks
            given["callbacks"] = [*kept, *ours]
        return getattr(type(self._model), method)(self._model, **given)


class NoStrategy:
    """What Keras asks of a `tf.distribute` strategy, answered as if there were none: the workers are the step's."""

    def experimental_distribute_dataset(self, dataset: Any) -> Any:
        """The data are shared out already."""
        return dataset

    def run(self, fn: Callable[..., Any], args: Sequence[Any] = ()) -> Any:
        """Run it here."""
        return fn(*args)


def _last_of(reports: Iterator[Any], steps: int) -> Any:
    """Take so many steps, or as many as there are, and at least one."""
    report = next(reports)
    for _ in range(steps - 1):
        report = next(reports, report)
    return report


def _require_own_optimizer(model: keras.Model) -> None:
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not optimizer.built:
        return
    theirs = {id(variable) for variable in optimizer._trainable_variables}
    if theirs and not theirs & {id(variable) for variable in model.variables}:
        raise ForeignOptimizer(
            f"optimizer {optimizer.name!r} was built for the variables of another model",
            "give compile() an optimizer of this model's own",
            everywhere=True,
        )
