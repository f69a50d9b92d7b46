"""The values of a step of the user's own, put together over the workers: metrics, states and logs."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.fit.own_step import Ran
from distgrad.objective.kinds import Evidence, Kind
from distgrad.objective.states import add_to, as_float


class OwnValues:
    """What a step assigns and returns besides the weights, as sums over the workers.

    Args:
        metrics, states: the variables that the step assigns.
        log_keys: the names of what it returns.
    """

    def __init__(
        self,
        metrics: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
        log_keys: Sequence[str],
    ) -> None:
        self._metrics, self._states, self.log_keys = list(metrics), list(states), list(log_keys)
        self._kinds = dict.fromkeys(self._names("metric", self._metrics), Kind.SUM)
        self._kinds |= dict.fromkeys(self._names("state", self._states), Kind.MEAN)
        self._kinds |= {f"log {key}": Kind.ONCE for key in self.log_keys}
        self._prefers = dict(self._kinds)

    @staticmethod
    def _names(what: str, variables: Sequence[keras.Variable]) -> list[str]:
        return [f"{what} {variable.path} {number}" for number, variable in enumerate(variables)]

    def questions(self) -> list[str]:
        """Return the names of the values."""
        return list(self._kinds)

    def learn(self, evidence: Evidence) -> bool:
        """Learn the kinds of the values. Returns True if one is another than before."""
        before = self._kinds
        self._kinds = {name: evidence.kind(name, kind) for name, kind in self._prefers.items()}
        return before != self._kinds

    def settings(self) -> list[str]:
        """Return the kinds of the values, as texts that are the same on all workers."""
        return [f"{name}: {kind.name}" for name, kind in self._kinds.items()]

    @property
    def taken_as_means(self) -> list[str]:
        """The values that only all rows together would tell."""
        names = [name for name, kind in self._kinds.items() if kind is Kind.WHOLE]
        return [name if name.startswith("log ") else name.rsplit(" ", 1)[0] for name in names]

    @property
    def logs_of_metrics(self) -> list[str]:
        """The logs that follow from metrics, or are the same everywhere."""
        return [key for key in self.log_keys if self._kinds[f"log {key}"] is Kind.ONCE]

    def by_name(self, ran: Ran) -> dict[str, tf.Tensor]:
        """Return the values of one worker, or of one batch."""
        changes = [ran.scope.changes.get(id(v), tf.zeros(v.shape, v.dtype)) for v in self._metrics]
        values = dict(zip(self._names("metric", self._metrics), changes, strict=True))
        for name, variable in zip(self._names("state", self._states), self._states, strict=True):
            new = tf.convert_to_tensor(ran.scope.get_current_value(variable))
            values[name] = as_float(new) - as_float(tf.convert_to_tensor(variable.value))
        return values | {f"log {key}": _number(ran.logs.get(key)) for key in self.log_keys}

    @property
    def entries(self) -> int:
        """The number of entries of `pack`."""
        return sum(int(np.prod(shape)) for shape in self._shapes())

    def pack(self, ran: Ran, rows: tf.Tensor) -> tf.Tensor:
        """Return (entries,) float64 the terms of one worker, which add up over the workers.

        Args:
            rows: () float64, how many rows it has; 0 if they are made up.
        """
        terms = []
        for name, value in self.by_name(ran).items():
            weight = tf.cast(rows > 0, tf.float64) if self._kinds[name] is Kind.SUM else rows
            wide = tf.reshape(tf.cast(value, tf.float64), [-1])
            terms.append(tf.where(weight > 0, wide * weight, tf.zeros_like(wide)))
        return tf.concat(terms, 0) if terms else tf.zeros(0, tf.float64)

    def settle(self, packed: tf.Tensor, rows: tf.Tensor, applied: tf.Tensor) -> dict[str, tf.Tensor]:
        """Assign metrics and states from the sums of all workers, unless the step is skipped.

        Args:
            packed: (entries,) the sums.
            rows: () float64, of the global batch.

        Returns:
            The logs that do not follow from metrics.
        """
        shapes = self._shapes()
        parts = tf.split(packed, [int(np.prod(shape)) for shape in shapes]) if shapes else []
        values = {}
        for (name, kind), part, shape in zip(self._kinds.items(), parts, shapes, strict=True):
            value = part if kind is Kind.SUM else part / tf.maximum(rows, 1)
            values[name] = tf.reshape(value, shape)
        for what, variables in (("metric", self._metrics), ("state", self._states)):
            for name, variable in zip(self._names(what, variables), variables, strict=True):
                add_to(variable, tf.where(applied, values[name], tf.zeros_like(values[name])))
        batch_logs = [key for key in self.log_keys if key not in self.logs_of_metrics]
        return {key: tf.cast(values[f"log {key}"], tf.float32) for key in batch_logs}

    def _shapes(self) -> list[tuple[int, ...]]:
        shapes = [tuple(variable.shape) for variable in [*self._metrics, *self._states]]
        return [*shapes, *(() for _ in self.log_keys)]


def _number(value: Any) -> tf.Tensor:
    """Return a log as one number of a float dtype, its own if it has one; of several numbers, their mean."""
    return tf.zeros(()) if value is None else tf.reduce_mean(as_float(tf.convert_to_tensor(value)))
