"""`distribute(model)`: compile, fit, evaluate and predict as Keras documents them, on all workers.

Keras runs its own loop over epochs, callbacks and logs. What it is given to run on is distgrad's: the data of a worker
(data.py), a train function whose every call is one `DistributedStep`, and a test function whose every call is one
`Evaluation` (functions.py).

The methods are replaced in the instance, not in its class, so that what is saved is a plain Keras model.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import keras

from distgrad.checkpoint.checkpoint import Checkpoint
from distgrad.checkpoint.fit_progress import FitProgress
from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.errors import FitMismatch, UnsupportedModel
from distgrad.fit.callbacks import EpochBegin, EpochEnd, GatherOptimizer, StartAlike, running_callbacks
from distgrad.fit.data import FitData, fit_data
from distgrad.fit.functions import StepFunction, test_function, train_function
from distgrad.keras_internals import CountedDataset, leave_strategy, split_rows
from distgrad.liveness.calls import difference
from distgrad.objective.metrics import single_metrics
from distgrad.step import DistributedStep
from distgrad.step.same_weights import share_weights

OWN = ("make_train_function", "make_test_function", "fit", "evaluate")
STATISTICS = ("gradient_norm", "gradient_sum", "gradient_zeros", "noise_scale")  # what the logs hold besides metrics


def distribute(
    model: keras.Model, comm: Communicator, micro_batch_size: int | None = None, **step_options: Any
) -> keras.Model:
    """Train a Keras model on all workers with its own `compile`, `fit`, `evaluate` and `train_on_batch`.

    `fit` is given what it is given in one process: arrays, PyDatasets and generators hold the global data, the same
    on every worker, and `batch_size` is that of the global batch. So does a `tf.data.Dataset` whose first batch is the
    same on every worker; one that differs, and what `comm.shard(dataset)` gives, is this worker's own data. Logs are
    those of the global data on every worker, with `gradient_sum` and `gradient_norm` of the last step. Only the root
    shows progress and runs callbacks that write files; `fit` returns when it has returned on all workers.

    A `train_step`, `test_step`, `compute_loss` or `compute_metrics` of the model's own is honoured (own_step.py).

    Args:
        model: compiled or not, built or not; saved models know nothing of distgrad.
        comm: what `distgrad.connect()` gave.
        micro_batch_size: rows that a worker differentiates at once.
        step_options: of `DistributedStep`; `log_every` is 0 unless given.

    Returns:
        The same model.

    Raises:
        UnsupportedModel: its class has a train or test function, a `fit` or an `evaluate` of its own.
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
    """The methods that a distributed model has instead of Keras's; each prepares a call of Keras's own.

    Args:
        model: it gets these methods, and keeps this object alive by them.
        comm: the workers.
        options: further arguments of `DistributedStep`.
    """

    def __init__(self, model: keras.Model, comm: Communicator, options: Mapping[str, Any]) -> None:
        self._model, self._comm, self._options = model, comm, options
        self._is_running = False  # one of Keras's loops
        leave_strategy(model)
        model.train_function = model.test_function = None
        model.make_train_function, model.make_test_function = self.make_train_function, self.make_test_function
        model.fit, model.evaluate, model.predict = self.fit, self.evaluate, self.predict
        model.train_on_batch = self.train_on_batch

    # ---- what a user calls

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train on all workers; see `keras.Model.fit` and `distribute`.

        Raises:
            FitMismatch: workers were given different arguments or callbacks, or have called something else.
        """
        given = self._arguments("fit", args, kwargs)
        if not self._model.compiled:
            return self._keras("fit", given)  # which says so
        self._require_company("fit")
        _hold_out_validation(given)
        training = self._data(given, given["steps_per_epoch"], given["shuffle"])
        validation = None if given["validation_data"] is None else self._validation_data(given)
        loop = ("epochs", "initial_epoch", "steps_per_epoch", "validation_steps", "validation_freq")
        self._require_same([f"{name}={given[name]}" for name in loop], training, given["callbacks"])
        step = self._begin(training, given["callbacks"])
        running = running_callbacks(given["callbacks"], self._comm.is_root)
        given["callbacks"] = [
            GatherOptimizer(step, running),
            EpochEnd(training, validation),
            *running,
            EpochBegin(training, validation),
            StartAlike(self._comm, step.start_alike),
        ]
        given |= {"x": training.dataset, "y": None, "sample_weight": None, "class_weight": None, "shuffle": False}
        given |= {"validation_data": None if validation is None else validation.dataset, "validation_split": 0.0}
        history = self._keras("fit", given)
        self._comm.barrier()  # what the root's callbacks have written is there, on every worker
        return history

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on all workers; see `keras.Model.evaluate` and `distribute`."""
        given = self._arguments("evaluate", args, kwargs)
        if isinstance(given["x"], CountedDataset) or not self._model.compiled:
            return self._keras("evaluate", given)  # within a fit, which has prepared it; or it says what is missing
        self._require_company("evaluate")
        data = self._data(given, given["steps"])
        self._require_same([f"steps={given['steps']}"], data, given["callbacks"])
        share_weights(self._comm, self._model)
        kept = running_callbacks(given["callbacks"], self._comm.is_root)
        given |= {"x": data.dataset, "y": None, "sample_weight": None}
        given["callbacks"] = [EpochEnd(None, data), *kept, EpochBegin(None, data)]
        return self._keras("evaluate", given)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict all that this worker is given, with the root's weights; see `keras.Model.predict`.

        Every worker calls it, except in callbacks of `fit` and `evaluate`. `keras.Model.predict(model, x)` asks nobody.
        """
        given = self._arguments("predict", args, kwargs)
        if not self._is_running:
            self._require_company("predict")
            share_weights(self._comm, self._model)
        given["callbacks"] = running_callbacks(given["callbacks"], self._comm.is_root)
        return self._keras("predict", given)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step on a global batch; see `keras.Model.train_on_batch`.

        Returns:
            The loss, or a list of it and the metrics; with `return_dict=True` all logs, statistics included.
        """
        given = self._arguments("train_on_batch", args, kwargs)
        self._require_company("train_on_batch")
        share_weights(self._comm, self._model)
        step = self._train_function().step
        step.shard_only_if_told()  # else the state would have to be gathered for each batch
        logs = self._keras("train_on_batch", given | {"return_dict": True})
        step.gather_optimizer()
        return logs if given["return_dict"] else _metrics_in_order(self._model, logs)

    # ---- what Keras calls

    def make_train_function(self, force: bool = False) -> None:
        """Set `model.train_function`."""
        if self._model.train_function is None or force:
            function = train_function(self._model, self._comm, self._options)
            self._model.optimizer = function.step.optimizer
            self._model.train_function = function

    def make_test_function(self, force: bool = False) -> None:
        """Set `model.test_function`."""
        if self._model.test_function is None or force:
            self._model.test_function = test_function(self._model, self._comm, self._options)

    # ---- what they have in common

    def _arguments(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Name the arguments of a method of the model, defaults included."""
        bound = inspect.signature(getattr(type(self._model), method)).bind(self._model, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        del given["self"]
        return given | given.pop("kwargs", {})

    def _data(self, given: Mapping[str, Any], steps: int | None, shuffle: bool | str = False) -> FitData:
        names = ("x", "y", "sample_weight", "class_weight", "batch_size")
        arguments = {name: given[name] for name in names if name in given}
        return fit_data(self._comm, arguments | {"steps_per_epoch": steps, "shuffle": shuffle})

    def _validation_data(self, given: Mapping[str, Any]) -> FitData:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(given["validation_data"])
        batch_size = given["validation_batch_size"] or given["batch_size"]
        arguments = {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": batch_size}
        return self._data(arguments, given["validation_steps"])

    def _require_same(self, settings: list[str], data: FitData, callbacks: Any) -> None:
        """Check that all workers loop alike: others would wait for one another for ever."""
        names = [f"callback={type(callback).__name__}" for callback in running_callbacks(callbacks, is_root=False)]
        agreement.require_same(self._comm, [*settings, *data.settings, *names], "argument", FitMismatch)

    def _train_function(self) -> StepFunction[DistributedStep]:
        self.make_train_function()
        return cast(StepFunction[DistributedStep], self._model.train_function)

    def _begin(self, training: FitData, callbacks: Any) -> DistributedStep:
        """Tell the train function and the checkpoints of this call of `fit`, and return what will take its steps."""
        function = self._train_function()
        function.progress = FitProgress(function.step, training.order)
        for callback in running_callbacks(callbacks, is_root=True):
            if isinstance(callback, Checkpoint):
                callback.set_fit_progress(function.progress)
        return function.step

    def _keras(self, method: str, given: dict[str, Any]) -> Any:
        """Run a method of the model's class, Keras's own; only the root shows progress."""
        if "verbose" in given and not self._comm.is_root:
            given["verbose"] = 0
        before, self._is_running = self._is_running, True
        try:
            with self._comm.liveness.at_work():  # but for its steps, see StepFunction
                return getattr(type(self._model), method)(self._model, **given)
        finally:
            self._is_running = before

    def _require_company(self, method: str) -> None:
        """Check that every worker has called the same method. Every worker calls it.

        Raises:
            FitMismatch: others are in another one.
        """
        with self._comm.liveness.calling(f"{method}()"):
            mismatch = difference(self._comm.exchange(f"{method}()"))
        if mismatch is not None:
            raise mismatch


def _hold_out_validation(given: dict[str, Any]) -> None:
    """Take the arrays to validate on out of those that `fit` was given, if it was told to."""
    if given["validation_split"] and given["validation_data"] is None:
        arrays = tuple(given[name] for name in ("x", "y", "sample_weight"))
        kept, given["validation_data"] = split_rows(arrays, given["validation_split"])
        given["x"], given["y"], given["sample_weight"] = kept


def _metrics_in_order(model: keras.Model, logs: Mapping[str, Any]) -> Any:
    """Return logs as `train_on_batch` does without distgrad: one value, or a list in the order of the metrics."""
    names = [metric.name for metric in single_metrics(model)]
    named = [name for name in names if name in logs]
    others = [name for name in sorted(logs) if name not in (*names, *STATISTICS)]
    values = [logs[name] for name in (*named, *others)]
    return values[0] if len(values) == 1 else values
