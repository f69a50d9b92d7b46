"""What the gradients, metrics, states and logs of a step of the user's own are of a batch: the first batch tells.

The step is traced until all that it uses is built, and is then run on the batch and on its two parts.
"""

from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import row_count, rows_between, spec_with_any_rows
from distgrad.fit.own_step import Apply, Runner
from distgrad.fit.own_values import OwnValues
from distgrad.gradients.checks import checked_against
from distgrad.objective.extra_sums import Asked
from distgrad.objective.kinds import Evidence, Kind, Parts
from distgrad.objective.trace import trace
from distgrad.objective.trial import Trial, Tried, taken_as_means

BUILDS = 5  # traces of a step at most, until it creates no more variables


def build(comm: Communicator, runner: Runner, batch: tuple[Any, ...]) -> None:
    """Create all variables that a step uses, on symbolic tensors: no row passes through the model."""
    specs = tf.nest.map_structure(spec_with_any_rows, batch)

    def run(*batch: Any) -> None:
        runner.run(batch, lambda _: None, tf.constant(0), assigns=False)

    for _ in range(BUILDS):
        before = runner.count_variables()
        error: Exception | None = None
        with comm.scope():
            try:
                trace(run, *specs)
            except Exception as failure:  # gradients of variables that have just been created
                error = failure
        if error is None or runner.count_variables() == before:
            break
    if error is not None:
        raise error


class OwnTrial(Trial):
    """Asks about the gradients, metrics, states and logs of a step of the model's own.

    Attributes:
        applies: the calls of optimizers that the step makes, in their order.
        values: its metrics, states and logs.
        assigned_weights: the trained variables that it assigns, by optimizers or itself.
    """

    is_random = False

    def __init__(self, comm: Communicator, runner: Runner, before: Trial | None) -> None:
        super().__init__(comm, runner.model, before)
        self._runner = runner
        self.applies: list[Apply] = []

    def prepare(self, batch: tuple[Any, ...]) -> None:
        """Find the values there are."""

        def run(*batch: Any) -> OwnValues:
            self.applies.clear()
            ran = self._runner.run(batch, self.applies.append, tf.constant(0), assigns=False)
            self.is_random = self._runner.draws(ran.scope)
            updated = {id(v): v for apply in self.applies for v in apply.variables}
            self.assigned_weights = list((updated | ran.scope.weights).values())
            return OwnValues(self._runner.metrics, self._runner.states(ran.scope), list(ran.logs))

        self.values = trace(run, *tf.nest.map_structure(spec_with_any_rows, batch))
        self.kinds = [Kind.MEAN for _ in self.applies]

    def settings(self) -> list[str]:
        """Return what all workers must share, each as "name=value"."""
        updated = [[getattr(v, "path", v.name) for v in apply.variables] for apply in self.applies]
        return [f"optimizer calls={updated}", f"kinds={self.kinds}", f"values={self.values.settings()}"]

    def questions(self) -> list[str]:
        """Return the names of the values."""
        return [*(f"gradients {number}" for number in range(len(self.applies))), *self.values.questions()]

    def learn(self, evidence: Evidence) -> bool:
        """Learn which gradients are means, which are sums."""
        before = self.kinds
        self.kinds = [evidence.kind(f"gradients {number}") for number in range(len(self.applies))]
        return self.values.learn(evidence) or before != self.kinds

    def notes(self, micro_batch_size: int | None) -> list[str]:  # noqa: ARG002
        """Return what is known from all rows only."""
        gradients = [
            f"gradients for {a.optimizer.name}"
            for a, k in zip(self.applies, self.kinds, strict=True)
            if k is Kind.WHOLE
        ]
        names = [*gradients, *self.values.taken_as_means]
        return [taken_as_means(names)] if names else []

    def traced(self, batch: tuple[Any, ...], cut: tf.Tensor, has_parts: bool) -> Tried:
        """Run the step on the batch and on its parts; nothing is assigned."""
        if not has_parts:
            return Tried({})
        # One trace for all three.
        specs = tf.nest.map_structure(spec_with_any_rows, batch)
        by_name = tf.function(self._by_name, autograph=False, input_signature=[specs])
        whole, rows = by_name(batch), row_count(batch)
        parts = [
            by_name(tf.nest.map_structure(lambda tensor, ends=ends: rows_between(tensor, *ends), batch))
            for ends in ((tf.constant(0), cut), (cut, rows))
        ]
        asked = {name: Asked(Parts(value, *(part[name] for part in parts)), True) for name, value in whole.items()}
        return Tried(asked)

    def _by_name(self, batch: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        applies: list[Apply] = []
        ran = self._runner.run(batch, applies.append, tf.constant(0), assigns=False)
        projected = {f"gradients {n}": _projected(apply) for n, apply in enumerate(applies)}
        return projected | self.values.by_name(ran)


def _projected(apply: Apply) -> tf.Tensor:
    """Return (2 v,) numbers that are linear in gradients, and tell a mean from a sum as well as all entries do."""
    found = []
    for given, variable in zip(apply.gradients, apply.variables, strict=True):
        gradient = checked_against(given, variable)
        if gradient is not None:
            flat = tf.reshape(tf.convert_to_tensor(gradient), [-1])
            wave = tf.cos(tf.cast(tf.range(tf.size(flat)), flat.dtype))
            found += [tf.reduce_sum(flat), tf.reduce_sum(flat * wave)]
    return tf.stack(found) if found else tf.zeros(0)
