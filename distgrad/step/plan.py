"""The plan of a step, learned from the model and its first batch before the step is traced, the same on all workers.

A throw-away trace of the forward and backward pass tells which losses there are, which variables a pass assigns, and
which gradients are dense, sparse or missing. What may differ between workers is exchanged once, here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import row_count, spec_with_any_rows
from distgrad.errors import warn
from distgrad.gradients.checks import Gradient, require_fitting
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.gradients.micro_batch import is_regularized, tensor_of
from distgrad.gradients.sparse import may_be_sparse
from distgrad.gradients.window_accumulator import window_on_cpu
from distgrad.keras_internals import keras_mask
from distgrad.objective.batch_normalization import require_single_pass, synchronized_layers
from distgrad.objective.extra_sums import ExtraSum, ExtraSums, Pass, PassSpecs
from distgrad.objective.forward import Forward, gradients_of
from distgrad.objective.global_batch import OutputsToGather
from distgrad.objective.losses import Objective
from distgrad.objective.model_trial import (
    ModelTrial,
    may_mix_rows,
    mixes_by_normalization,
    states_taken_as_means,
)
from distgrad.objective.states import States, states_of_rows
from distgrad.objective.trace import trace
from distgrad.objective.trial import Trial
from distgrad.reports.groups import members_of
from distgrad.reports.statistics import OF_ONE_DIVISOR, Contents
from distgrad.reports.worker_table import WorkerTable
from distgrad.step.config import StepConfig
from distgrad.step.drift import Drift
from distgrad.step.start import batch_specs, require_same_settings


class Batch(NamedTuple):
    """A batch by its parts: nests of tensors or of their specs, (b, ...) each; y and sample_weight may be None."""

    x: Any
    y: Any = None
    sample_weight: Any = None


class Traced(NamedTuple):
    """The result of the throw-away trace.

    Attributes:
        specs: of the batch and the output.
        states: the variables that a pass assigns, those of metrics among them.
        gradients: of each loss, one after the other, as the tape gives them; empty in an evaluation.
        added_losses: how many losses layers add.
    """

    specs: PassSpecs
    states: list[keras.Variable]
    gradients: list[Gradient]
    added_losses: int


def trace_model(
    forward: Forward,
    objective: Objective,
    variables: Sequence[keras.Variable],
    batch: tuple[Any, ...],
) -> Traced:
    """Trace a forward pass, and a backward pass if there are variables; the objective learns from it what there is."""
    specs = Batch(*batch_specs(forward.model, batch))
    sources = [tensor_of(variable) for variable in variables]

    def traced(*tensors: Any) -> Traced:
        x, y, sample_weight = Batch(*tensors)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            y_pred, scope = forward.run(x, tf.constant(0), watch=tape.watch)
            seen = Pass(x, y, sample_weight, y_pred, row_count(x), scope)
            losses = objective.prepare_terms(seen)
        gradients = [
            one for loss in losses for one in (gradients_of(tape, loss.total, variables, scope) if variables else [])
        ]
        output_specs = tf.nest.map_structure(spec_with_any_rows, y_pred)
        found = tf.nest.map_structure(keras_mask, y_pred)
        masks = tf.nest.map_structure(lambda mask: None if mask is None else spec_with_any_rows(mask), found)
        pass_specs = PassSpecs(*specs, output_specs, masks, frozenset(scope.assigned))
        return Traced(pass_specs, forward.states(scope), gradients, len(scope.losses))

    return trace(traced, *specs)


@dataclass(frozen=True)
class GradientKinds:
    """The kinds of the gradients, the same on all workers.

    Attributes:
        exists: for each variable, True if it has a gradient on any worker, or is regularized. The others are not
            updated, as Keras would not.
        sparse: the numbers of the variables of which only touched rows are summed.
    """

    exists: tuple[bool, ...]
    sparse: tuple[int, ...]


DENSE, SPARSE, MISSING = "dsm"


def agree_on_gradients(
    comm: Communicator,
    model: keras.Model,
    variables: Sequence[keras.Variable],
    traced: Traced,
    may_use_sparse: bool,
) -> GradientKinds:
    """Exchange the kinds of the gradients that each worker's trace has shown. Every worker calls it.

    Args:
        may_use_sparse: False adds up all gradients densely.

    Raises:
        GradientMismatch: on every worker, if a gradient of any worker is not like its variable.
    """
    require_fitting(comm, traced.gradients, variables)
    own = "".join(_kind(gradient) for gradient in traced.gradients)
    anywhere = [set(column) for column in zip(*comm.exchange(own).values(), strict=True)]
    kinds = [set[str]().union(*anywhere[number :: len(variables)]) for number in range(len(variables))]
    exists = [kinds[n] != {MISSING} or is_regularized(variable) for n, variable in enumerate(variables)]
    candidates = may_be_sparse(model, variables) if may_use_sparse and window_on_cpu(comm) else []
    return GradientKinds(tuple(exists), tuple(number for number in candidates if SPARSE in kinds[number]))


def _kind(gradient: Gradient) -> str:
    if gradient is None:
        return MISSING
    return SPARSE if isinstance(gradient, tf.IndexedSlices) else DENSE


@dataclass(frozen=True)
class StepPlan:
    """All that a training step is made of.

    Attributes:
        variables: those that are differentiated.
        kinds: of their gradients.
        objective, forward: the losses of a micro-batch.
        extra: all extra sums; the objective, drift and workers are among them.
        drift: the comparison of the workers' weights.
        workers: the table of workers; None if no statistics need it.
        contents: of the reports.
        trial: what is known of the model's values.
        states_of_rows: states that stay with the worker that has the rows.
        outputs: what is gathered of all workers before a loss is computed; None if nothing is.
        is_synchronized: True if layers sum over the workers in the midst of a pass.
        keeps_gradient: True to keep the global gradient for the report.
    """

    variables: Sequence[keras.Variable]
    kinds: GradientKinds
    objective: Objective
    forward: Forward
    extra: ExtraSums
    drift: Drift
    workers: WorkerTable | None
    contents: Contents
    trial: ModelTrial
    states_of_rows: Sequence[keras.Variable]
    outputs: OutputsToGather | None
    is_synchronized: bool
    keeps_gradient: bool

    def without_sparse(self) -> "StepPlan":
        """Return the plan in which the gradients of all variables are dense."""
        return replace(self, kinds=replace(self.kinds, sparse=()))


def make_plan(
    comm: Communicator,
    model: keras.Model,
    objective: Objective,
    config: StepConfig,
    batch: tuple[Any, ...],
    *,
    extra: Sequence[ExtraSum],
    drift: Drift,
    is_eager: bool,
    keeps_gradient: bool,
    before: Trial | None = None,
) -> StepPlan:
    """Learn what a step is made of. Every worker calls it, with a first batch that may differ.

    Args:
        extra: what is summed along besides losses and moving statistics.
        drift: the comparison of the workers' weights.
        is_eager: True if the step is not compiled.
        keeps_gradient: see `StepPlan`.
        before: the trial of an earlier plan for the same model, whose answers hold.
    """
    variables, forward = model.trainable_variables, Forward(model, training=True)
    synchronized = synchronized_layers(model)
    require_single_pass(synchronized, config.micro_batch_size)
    traced = trace_model(forward, objective, variables, batch)
    trial = try_model(comm, model, forward, traced, batch, sums=[objective, *extra], before=before)
    trial.tell(config.micro_batch_size)
    contents = _contents(comm, variables, objective, config)
    require_same_settings(comm, _settings(config, contents, objective))
    kinds = agree_on_gradients(comm, model, variables, traced, objective.groups == 1 and not is_eager)
    workers = WorkerTable(comm.size, FlatLayout(variables).dtype) if contents.by_worker else None
    return StepPlan(
        variables,
        kinds,
        objective,
        forward,
        ExtraSums([*trial.sums, drift, *([workers] if workers else [])]),
        drift,
        workers,
        contents,
        trial,
        states_of_rows=states_of_rows(model),
        outputs=outputs_to_gather(model, trial, traced.specs),
        is_synchronized=bool(synchronized),
        keeps_gradient=keeps_gradient,
    )


def try_model(
    comm: Communicator,
    model: keras.Model,
    forward: Forward,
    traced: Traced,
    batch: tuple[Any, ...],
    *,
    sums: Sequence[ExtraSum],
    before: Trial | None,
) -> ModelTrial:
    """Ask what the values of a model are of its first batch. Every worker calls it.

    Args:
        sums: all extra sums that come of micro-batches, but for states.
        before: an earlier trial, whose answers hold.
    """
    for extra in sums:
        extra.prepare(traced.specs)
    of_rows = {id(variable) for variable in states_of_rows(model)}
    certain = states_taken_as_means(model)
    states = States([variable for variable in traced.states if id(variable) not in of_rows], certain)
    trial = ModelTrial(
        comm,
        forward,
        [*sums, states],
        looks_at_outputs=forward.training and may_mix_rows(model),
        knows_mixing=forward.training and mixes_by_normalization(model),
        added_losses=traced.added_losses,
        before=before,
    )
    trial.ask(batch)
    return trial


def outputs_to_gather(model: keras.Model, trial: ModelTrial, specs: PassSpecs) -> OutputsToGather | None:
    """Return what is gathered of each batch; None if nothing of the model needs the global batch."""
    if not trial.needs_whole:
        return None
    own = (type(model).compute_loss, type(model).compute_metrics)
    uses_x = own != (keras.Model.compute_loss, keras.Model.compute_metrics)
    return OutputsToGather(specs.y_pred, specs.masks, uses_x, trial.needs_whole)


def _contents(
    comm: Communicator, variables: Sequence[keras.Variable], objective: Objective, config: StepConfig
) -> Contents:
    """Return the contents of the reports."""
    described = [(variable.path, tuple(variable.shape)) for variable in variables]
    groups = members_of(config.groups or {}, [path for path, _ in described], is_root=comm.is_root)
    asked, impossible = config.statistics, config.statistics & {*OF_ONE_DIVISOR}
    if objective.groups > 1:
        asked -= impossible
        if impossible and comm.is_root:
            warn(f"no statistics {', '.join(sorted(impossible))}: the losses are divided by several numbers")
    divides = config.reduction == "mean" and objective.divides
    return Contents(described, groups, comm.size, comm.rank, asked, divides)


def _settings(config: StepConfig, contents: Contents, objective: Objective) -> list[str]:
    return [
        f"reduction={'mean' if contents.divides else 'sum'}",
        f"on_nonfinite={config.on_nonfinite}",
        f"micro_batch_size={config.micro_batch_size}",
        f"statistics={','.join(sorted(contents.asked))}",
        f"by variable={contents.by_variable}",
        *objective.settings(),
        f"check_every={config.check_every}",
        f"max_skipped={config.max_skipped}",
        f"shard_update={config.shard_update}",
        f"compression={config.compression}",
    ]
