"""The trial of a model: what its losses, metrics and states are of a batch.

    whole         a forward pass of this worker's rows
    parts         a forward pass of each of two parts of them, if layers add losses or assign states
    cut           the same parts, as rows of the outputs of `whole`
    again         a pass of `whole` that begins with the states that it has left, if layers assign states; then two
                  thirds of the rows are tried, so that all passes together cost no more than two of the batch

Each extra sum takes the values it is unsure of from these passes, and learns from all workers' answers what they are.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import row_count, rows_between
from distgrad.keras_internals import flat_layers, is_of_keras, keras_mask, set_keras_mask
from distgrad.objective.extra_sums import Asked, ExtraSum, Pass, TrialPasses
from distgrad.objective.forward import AssignedValues, Forward, built_in_rows, no_rows_of
from distgrad.objective.global_batch import gather_at_once
from distgrad.objective.kinds import ALL, Evidence, Kind, Parts, possible_kinds
from distgrad.objective.states import States
from distgrad.objective.trial import OUTPUTS, Trial, Tried, taken_as_means


class ModelTrial(Trial):
    """Asks about the losses, metrics and states of a model.

    Attributes:
        sums: all extra sums that come of micro-batches.

    Args:
        comm: the workers.
        forward: the model's pass.
        sums: those extra sums, prepared.
        looks_at_outputs: True to ask, too, whether rows of the output depend on other rows.
        knows_mixing: True if it is known that they do.
        added_losses: how many losses layers add.
        before: an earlier trial of the same model, whose answers hold.
    """

    is_random = False

    def __init__(
        self,
        comm: Communicator,
        forward: Forward,
        sums: Sequence[ExtraSum],
        *,
        looks_at_outputs: bool = False,
        knows_mixing: bool = False,
        added_losses: int = 0,
        before: Trial | None = None,
    ) -> None:
        super().__init__(comm, forward.model, before)
        self._forward, self.sums = forward, list(sums)
        self._looks_at_outputs, self._knows_mixing = looks_at_outputs, knows_mixing
        self._added_losses = added_losses
        self._outputs = tf.function(self._outputs_of, autograph=False, reduce_retracing=True)
        self._asked = tf.function(self._asked_of_outputs, autograph=False, reduce_retracing=True)

    @property
    def needs_whole(self) -> list[str]:
        """Names of the losses and metrics that are computed on the gathered global batch."""
        return [what for extra in self.sums for what in extra.needs_whole]

    @property
    def taken_as_means(self) -> list[str]:
        """Names of the values that only the global batch would tell, and of which the mean over its parts is taken."""
        return [what for extra in self.sums for what in extra.taken_as_means]

    @property
    def mixes_rows(self) -> bool:
        """True if rows of the output depend on other rows of the batch."""
        is_seen = self._looks_at_outputs and self._evidence.kind(OUTPUTS, Kind.ONCE) is not Kind.ONCE
        return self._knows_mixing or is_seen

    @property
    def asks_all_workers(self) -> bool:
        """True if something is a function of the outputs alone."""
        return any(extra.asks_outputs for extra in self.sums)

    def rows_tried(self, rows: int) -> int:
        """Return how many of a worker's rows are tried: two thirds where there are passes for states, else all."""
        return max(min(rows, 3), 2 * rows // 3) if self._asks_states else rows

    def outputs(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        """Run the model on all rows of a batch."""
        found: dict[str, Any] = self._outputs(batch)
        return found

    def _outputs_of(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        return _with_outputs(batch, self._forward.run(batch[0], tf.constant(0), self._zeroed)[0])

    def of_all_workers(self, outputs: dict[str, Any], rows: int) -> dict[str, frozenset[Kind]]:
        """Compute what is a function of the outputs of all workers' rows, which tell more than a few.

        They are cut at several places: at one alone, a value might look like a mean or a sum by chance.
        """
        gathered = gather_at_once(self._comm, outputs, rows)
        if gathered is None:
            return {}
        parts, total = gathered
        possible: dict[str, frozenset[Kind]] = {}
        for cut in sorted({max(1, total // 4), max(1, total // 2), total - 1}):
            for name, found in self._asked(parts, tf.constant(cut), tf.constant(total)).items():
                values = Parts(*[None if one is None else np.asarray(one) for one in found])
                possible[name] = possible.get(name, ALL) & possible_kinds(values, (cut, total - cut))
        asked = self.questions()
        return {name: kinds for name, kinds in possible.items() if name in asked}

    def _asked_of_outputs(self, parts: dict[str, Any], cut: tf.Tensor, rows: tf.Tensor) -> dict[str, Parts]:
        """Let the extra sums take their values from outputs."""
        parts = dict(parts)
        tf.nest.map_structure(set_keras_mask, parts["y_pred"], parts.pop("masks"))
        scope = AssignedValues([(v, tf.zeros(v.shape, v.dtype)) for v in self._zeroed])
        scope.losses.extend([tf.zeros(())] * self._added_losses)
        whole = Pass(**parts, rows=rows, scope=scope)
        first, second = (_cut(whole, *ends) for ends in ((tf.constant(0), cut), (cut, rows)))
        asked = [extra.ask(TrialPasses(whole, None, (first, second))) for extra in self.sums if extra.asks_outputs]
        return {name: one.values for found in asked for name, one in found.items() if not one.of_forward}

    def questions(self) -> list[str]:
        """Return the names of all that the extra sums are unsure of."""
        names = [name for extra in self.sums for name in extra.questions()]
        return [*names, OUTPUTS] if self._looks_at_outputs and self._tries == 0 else names

    @property
    def takes_parts(self) -> bool:
        """True unless the model is built for a certain number of rows."""
        return built_in_rows(self._forward.model) is None

    def learn(self, evidence: Evidence) -> bool:
        """Let all extra sums learn."""
        has_changed = [extra.learn(evidence) for extra in self.sums]
        return any(has_changed)

    def notes(self, micro_batch_size: int | None) -> list[str]:
        """Return what is known from all rows only, and what is done with it."""
        notes = []
        if self.needs_whole:
            passes = ", and another forward pass" if micro_batch_size is not None else ""
            notes.append(
                f"{' and '.join(self.needs_whole)}: depends on all rows of the batch together, and is computed on the "
                f"outputs of all workers, gathered in each step{passes}; a function of each row by itself costs less"
            )
        if self.taken_as_means:
            notes.append(taken_as_means(self.taken_as_means))
        if self.mixes_rows:
            notes.append(
                "rows of the model's output depend on other rows of the batch: each micro-batch of each worker is a "
                "batch of its own; BatchNormalization(synchronized=True) normalises over all workers"
            )
        return notes

    def traced(self, batch: tuple[Any, ...], cut: tf.Tensor, has_parts: bool) -> Tried:
        """Run the passes, and let the extra sums take their values from them."""
        nothing = self._nothing(batch) if has_parts and self._asks_states else None
        whole = self._pass(batch, nothing)
        self.is_random = self._forward.is_random(whole.scope)
        rows = whole.rows
        ranges = [(tf.constant(0), cut), (cut, rows)]
        batches = [tf.nest.map_structure(lambda t, ends=ends: rows_between(t, *ends), batch) for ends in ranges]
        is_cut = all(_has_rows_like(leaf, batch) for leaf in tf.nest.flatten(whole.y_pred))
        needs_parts = has_parts and (self._needs_parts(whole) or not is_cut)
        parts = [self._pass(part, nothing) for part in batches] if needs_parts else None
        cuts = [_cut(whole, *ends) for ends in ranges] if is_cut else parts or [whole, whole]
        again = self._pass(batch, self._nothing(batch, whole.scope), whole.scope) if nothing is not None else None
        passes = TrialPasses(whole, (parts[0], parts[1]) if parts else None, (cuts[0], cuts[1]), again)
        asked: dict[str, Asked] = {}
        for extra in self.sums:
            asked |= extra.ask(passes)
        if self._looks_at_outputs and parts and is_cut:
            asked[OUTPUTS] = Asked(_apart(passes), of_forward=True)
        return Tried(asked, _with_outputs(batch, whole.y_pred) if self.asks_all_workers else None)

    def _needs_parts(self, whole: Pass) -> bool:
        states = [extra for extra in self.sums if extra.questions()]
        is_needed = any(extra.needs_parts for extra in self.sums)
        return self._looks_at_outputs or is_needed or bool(whole.scope.losses) or bool(whole.scope.assigned and states)

    @property
    def _asks_states(self) -> bool:
        return any(isinstance(extra, States) and extra.questions() for extra in self.sums)

    def _pass(
        self, batch: tuple[Any, ...], nothing: AssignedValues | None, after: AssignedValues | None = None
    ) -> Pass:
        y_pred, scope = self._forward.run(batch[0], tf.constant(0), self._zeroed, after=after)
        rows = row_count(batch)
        seen = Pass(**_named(batch), y_pred=y_pred, rows=rows, scope=scope, nothing=nothing, start=after)
        return seen._replace(taken={extra: extra.take(seen) for extra in self.sums})

    def _nothing(self, batch: tuple[Any, ...], after: AssignedValues | None = None) -> AssignedValues:
        """Return what a pass over no rows assigns."""
        return self._forward.run(no_rows_of(batch[0]), tf.constant(0), self._zeroed, after=after)[1]

    @property
    def _zeroed(self) -> list[keras.Variable]:
        return [variable for extra in self.sums for variable in extra.zeroed]


def _with_outputs(batch: tuple[Any, ...], y_pred: Any) -> dict[str, Any]:
    """Return a batch, its outputs and the masks upon them."""
    return {**_named(batch), "y_pred": y_pred, "masks": tf.nest.map_structure(keras_mask, y_pred)}


def _named(batch: tuple[Any, ...]) -> dict[str, Any]:
    x, y, sample_weight = (*batch, None, None)[:3]
    return {"x": x, "y": y, "sample_weight": sample_weight}


def may_mix_rows(model: keras.Model) -> bool:
    """Return whether a user's layers or functions may let rows of the output depend on other rows.

    Keras's own layers look at each row by itself, but for batch normalization.
    """
    return any(not is_of_keras(layer) or isinstance(layer, keras.layers.Lambda) for layer in flat_layers(model))


def mixes_by_normalization(model: keras.Model) -> bool:
    """Return whether batch normalization does so, in training mode."""
    return any(layer.trainable and not layer.synchronized for layer in _batch_normalization(model))


def states_taken_as_means(model: keras.Model) -> set[int]:
    """Return the ids of the moving statistics of batch normalization, which are not asked about."""
    return {id(variable) for layer in _batch_normalization(model) for variable in layer.variables}


def _batch_normalization(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in flat_layers(model) if type(layer) is keras.layers.BatchNormalization]


def _apart(passes: TrialPasses) -> Parts:
    """Return how far each part's outputs are from those rows of the whole batch's: zeros if no row looks at another."""
    assert passes.parts is not None
    pairs = [
        (tf.cast(one, tf.float64), tf.cast(other, tf.float64))
        for own, cut in zip(passes.parts, passes.cut, strict=True)
        for one, other in zip(tf.nest.flatten(own.y_pred), tf.nest.flatten(cut.y_pred), strict=True)
    ]
    apart = tf.reduce_max([tf.reduce_max(tf.abs(one - other)) for one, other in pairs])
    size = tf.reduce_max([tf.reduce_max(tf.abs(other)) for _, other in pairs])
    # Far apart, the values fit to no kind; else they are zero, which fits to all.
    is_apart = tf.cast(~(apart <= 1e-3 * size) & tf.math.is_finite(size), tf.float64)
    return Parts(is_apart, -is_apart, 2 * is_apart)


def _cut(whole: Pass, first: tf.Tensor, last: tf.Tensor) -> Pass:
    """Return rows of a pass, as a pass."""

    def rows_of(nest: Any) -> Any:
        return tf.nest.map_structure(lambda one: None if one is None else rows_between(one, first, last), nest)

    x, y, sample_weight, y_pred = map(rows_of, (whole.x, whole.y, whole.sample_weight, whole.y_pred))
    masks = rows_of(tf.nest.map_structure(keras_mask, whole.y_pred))
    tf.nest.map_structure(set_keras_mask, y_pred, masks)
    return whole._replace(x=x, y=y, sample_weight=sample_weight, y_pred=y_pred, rows=last - first)


def _has_rows_like(output: Any, batch: tuple[Any, ...]) -> bool:
    """Return whether an output's first axis counts the rows of the batch, as far as its shape tells."""
    own, theirs = output.shape[:1].as_list(), tf.nest.flatten(batch)[0].shape[:1].as_list()
    return own == theirs
