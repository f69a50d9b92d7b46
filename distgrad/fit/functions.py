"""Train function and test function of a model: Keras's loops call them, and each call takes steps."""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import keras
import tensorflow as tf

from distgrad.checkpoint.fit_progress import FitProgress
from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import no_rows_like
from distgrad.data.sharding import rows_of_workers
from distgrad.errors import ForeignOptimizer
from distgrad.fit.own_training import GivenAsKeras, OwnTestStep, OwnTrainStep
from distgrad.keras_internals import compile_loss, optimized_variables
from distgrad.objective.losses import Objective
from distgrad.objective.metrics import MetricSums
from distgrad.step import DistributedStep
from distgrad.step.evaluation import Evaluation

Step = TypeVar("Step", DistributedStep, Evaluation)


class StepFunction(Generic[Step]):
    """A train function or a test function: called with an iterator, it takes the next steps and returns their logs.

    All steps of one iterator are one `DistributedStep.epoch`, which ends when the last worker has run out of batches.

    Attributes:
        step: what takes the steps.
        progress: the call of `fit` that they belong to, if they train; it says which were taken before a resume.
    """

    def __init__(self, step: Step, model: keras.Model, comm: Communicator) -> None:
        self.step: Step = step
        self._model, self._comm = model, comm
        self.progress: FitProgress | None = None
        self._iterator: Any = None
        self._reports: Iterator[Any] = iter(())  # of the steps of that iterator

    def __call__(self, iterator: Iterator[Any]) -> Mapping[str, Any]:
        """Take `steps_per_execution` steps, or as many as there are.

        Args:
            iterator: of this worker's batches if it is that of a dataset, else of one global batch of arrays.

        Raises:
            StopIteration: no worker has a batch left.
        """
        with self._comm.liveness.at_work(False):
            return self._take_steps(iterator)

    def _take_steps(self, iterator: Iterator[Any]) -> Mapping[str, Any]:
        if not hasattr(iterator, "element_spec"):
            return self.step(*self._own_rows(next(iterator))).keras_logs()
        steps = self._model.steps_per_execution
        if self.progress is not None:
            steps = self.progress.skip(steps)
            if not steps:
                return self._skip(iterator, self.progress)
        if iterator is not self._iterator:
            sharing = getattr(iterator, "sharing", None)
            if isinstance(self.step, GivenAsKeras):
                self.step.give_tuples(isinstance(iterator.element_spec, tuple))
            batches = iterator if sharing is None else sharing.share_out(iterator)
            self._iterator, self._reports = iterator, self.step.epoch(batches)
        return _last_of(self._reports, steps).keras_logs()

    def _skip(self, iterator: Any, progress: FitProgress) -> Mapping[str, Any]:
        """Return the logs of steps that were taken before a resume; the step itself passes over their batches."""
        self.step.join(no_rows_like(iterator.element_spec))
        if progress.data_exhausted:  # no batch is left of this iterator
            self._iterator, self._reports = iterator, iter(())
        return progress.logs

    def _own_rows(self, batch: tuple[Any, ...]) -> list[Any]:
        """Cut this worker's rows out of one global batch of arrays."""
        first, last, size = self._comm.rank, self._comm.rank + self._comm.span, self._comm.size

        def cut(array: Any) -> tf.Tensor:
            return rows_of_workers(tf.convert_to_tensor(array), first, last, size)

        return [None if part is None else keras.tree.map_structure(cut, part) for part in batch]


def train_function(model: keras.Model, comm: Communicator, options: Mapping[str, Any]) -> StepFunction[DistributedStep]:
    """Make a compiled model's train function, with the model's loss, optimizer and metrics.

    Args:
        options: further arguments of `DistributedStep`.

    Raises:
        ForeignOptimizer: the optimizer is that of another model.
    """
    _require_own_optimizer(model)
    options = {"jit_compile": bool(model.jit_compile), **options}
    kind = DistributedStep if type(model).train_step is keras.Model.train_step else OwnTrainStep
    objective = Objective(compile_loss(model), model, uses_model_loss=True)
    step = kind(model, objective, model.optimizer, comm=comm, **options)
    step.run_eagerly = model.run_eagerly
    # Where nobody can ask for it, the optimizer may compute in place.
    step.keeps_gradient = bool(options.get("listeners")) or options.get("on_nonfinite") == "raise"
    step.carry(MetricSums(model, logs_gradient=True))
    return StepFunction(step, model, comm)


def test_function(model: keras.Model, comm: Communicator, options: Mapping[str, Any]) -> StepFunction[Evaluation]:
    """Make a compiled model's test function, with the model's loss and metrics.

    Args:
        options: those of `DistributedStep`, of which an evaluation has some, too.
    """
    options = {"jit_compile": bool(model.jit_compile), **options}
    shared = {name: options[name] for name in ("micro_batch_size", "reduction", "jit_compile") if name in options}
    kind = Evaluation if type(model).test_step is keras.Model.test_step else OwnTestStep
    evaluation = kind(model, compile_loss(model), comm=comm, **shared, uses_model_loss=True)
    evaluation.run_eagerly = model.run_eagerly
    evaluation.carry(MetricSums(model, logs_gradient=False))
    return StepFunction(evaluation, model, comm)


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
    theirs = {id(variable) for variable in optimized_variables(optimizer)}
    if theirs and not theirs & {id(variable) for variable in model.variables}:
        raise ForeignOptimizer(
            f"optimizer {optimizer.name!r} was built for the variables of another model",
            "give compile() an optimizer of this model's own",
            everywhere=True,
        )
