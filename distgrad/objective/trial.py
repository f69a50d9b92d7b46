"""A trial on real rows: what named values are of a batch, asked before the step is compiled.

model_trial.py asks about the values of a model, fit/own_trial.py about those of a `train_step` of the model's own.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import row_count, rows_between, spec_with_any_rows
from distgrad.errors import note
from distgrad.objective.extra_sums import Asked
from distgrad.objective.kinds import ALL, Evidence, Kind, Parts, possible_kinds

TRIES = 100  # batches, until values that have always been zero are taken for what they most likely are
_told: weakref.WeakKeyDictionary[keras.Model, set[str]] = weakref.WeakKeyDictionary()  # notes that were printed
OUTPUTS = "outputs"  # the name of the question whether rows of the output depend on other rows
PARTS = "parts"  # and of the one whether the model can be given parts of a batch


class Tried(NamedTuple):
    """The values that passes give.

    Attributes:
        asked: by their names.
        outputs: the batch, the outputs of the whole and the masks upon them, of which `Trial.of_all_workers` asks; None
            if it asks of nothing.
    """

    asked: dict[str, Asked]
    outputs: dict[str, Any] | None = None


class Trial:
    """Asks what named values are of a batch, until the answers are known.

    Attributes:
        goes_on: True if the next batch is to be asked, too: the values of the batches so far cannot tell.

    Args:
        comm: the workers.
        model: whose values they are.
        before: an earlier trial of the same model, whose answers hold.
    """

    def __init__(self, comm: Communicator, model: keras.Model, before: "Trial | None" = None) -> None:
        self._comm, self._model = comm, model
        self._evidence: Evidence = Evidence() if before is None else before._evidence
        self._tries: int = 0 if before is None else before._tries
        self.goes_on = False
        self._compiled: dict[Any, Any] = {}
        self._has_parts = True

    # ---- what a kind of trial supplies

    def questions(self) -> list[str]:
        """Return the names of the values to ask about."""
        raise NotImplementedError

    def traced(self, batch: tuple[Any, ...], cut: tf.Tensor, has_parts: bool) -> Tried:
        """Compute the values of a batch and of its first `cut` rows and its other rows, in a graph.

        Args:
            has_parts: False if the model takes no other number of rows than that of the batch.
        """
        raise NotImplementedError

    @property
    def asks_all_workers(self) -> bool:
        """True if some values are asked of the rows of all workers."""
        return False

    def outputs(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        """Return `Tried.outputs` of a batch."""
        raise NotImplementedError

    def of_all_workers(self, outputs: dict[str, Any], rows: int) -> dict[str, frozenset[Kind]]:
        """Return the kinds of values that are computed of the rows of all workers. Every worker calls it.

        Args:
            outputs: of `rows` rows of this worker, see `Tried`.
        """
        raise NotImplementedError

    def learn(self, evidence: Evidence) -> bool:
        """Learn from the answers. Returns True if something is of another kind than before."""
        raise NotImplementedError

    @property
    def is_random(self) -> bool:
        """True if passes draw random numbers; known once they are traced."""
        raise NotImplementedError

    def notes(self, micro_batch_size: int | None) -> list[str]:
        """Return what is to be said of a model whose batch cannot be cut as others can."""
        raise NotImplementedError

    @property
    def takes_parts(self) -> bool:
        """True if the model takes other numbers of rows than that of the batch, as far as that is known."""
        return True

    def rows_tried(self, rows: int) -> int:
        """Return how many of a worker's rows are tried, if the model takes parts."""
        return rows

    # ---- what follows from it

    def ask(self, batch: tuple[Any, ...]) -> bool:
        """Ask about a batch. Every worker calls it, with a batch of its own.

        Args:
            batch: (x, [y, [sample_weight]]), this worker's rows.

        Returns:
            True if something is of another kind than before.
        """
        names = self.questions()
        if not names:
            return False
        rows, tried = self._try(batch)
        possible = {name: self._possible(name, tried.asked, (rows // 2, rows - rows // 2)) for name in names}
        if tried.outputs is not None:
            for name, kinds in self.of_all_workers(tried.outputs, rows).items():
                possible[name] &= kinds
        self._evidence.add(self._comm, possible | {PARTS: ALL if self._has_parts else frozenset()})
        self._tries += 1
        has_changed = self.learn(self._evidence)
        may_tell = self._tries < TRIES and self._evidence.kind(PARTS) is not Kind.WHOLE
        self.goes_on = may_tell and bool(self._evidence.undecided(self.questions()))
        return has_changed

    def tell(self, micro_batch_size: int | None) -> None:
        """Print the notes, a line each, on the root; each text once for a model."""
        if self._comm.is_root and (self._comm.size > 1 or micro_batch_size is not None):
            told = _told.setdefault(self._model, set())
            for text in self.notes(micro_batch_size):
                if text not in told:
                    note(text)
                    told.add(text)

    def _possible(self, name: str, found: dict[str, Asked], rows: tuple[int, int]) -> frozenset[Kind]:
        if name not in found:
            return ALL
        is_random = found[name].of_forward and self.is_random
        return ALL if is_random and name == OUTPUTS else possible_kinds(found[name].values, rows, is_random)

    def _try(self, batch: tuple[Any, ...]) -> tuple[int, Tried]:
        """Compute the values; those of parts are left out if the model cannot take parts.

        Returns:
            (rows that were tried, the values as arrays).
        """
        rows = int(row_count(batch))
        if rows <= 1:  # which has no parts
            return rows, Tried({}, self.outputs(batch) if self.asks_all_workers else None)
        self._has_parts &= self.takes_parts
        if self._has_parts:
            part = self.rows_tried(rows)
            try:
                return part, self._run(tf.nest.map_structure(lambda tensor: rows_between(tensor, 0, part), batch))
            except Exception:  # whatever a model says to a number of rows that it is not made for
                self._has_parts = False
        return rows, self._run(batch)

    def _run(self, batch: tuple[Any, ...]) -> Tried:
        specs = tf.nest.map_structure(spec_with_any_rows if self._has_parts else tf.type_spec_from_value, batch)
        key = self._has_parts, *tf.nest.flatten(specs)
        if key not in self._compiled:
            self._compiled[key] = self._compile(specs, self._has_parts)
        compiled, of_forward = self._compiled[key]
        found, outputs = compiled(batch, tf.constant(int(row_count(batch)) // 2))
        numbers = {name: [None if one is None else np.asarray(one) for one in values] for name, values in found.items()}
        asked = {name: Asked(Parts(*values), of_forward[name]) for name, values in numbers.items()}
        return Tried(asked, outputs)

    def _compile(self, specs: tuple[Any, ...], has_parts: bool) -> tuple[Any, dict[str, bool]]:
        """Return the function that computes the values, and of each, once it is traced, whether it is of a pass."""
        of_forward: dict[str, bool] = {}

        def values(batch: tuple[Any, ...], cut: tf.Tensor) -> tuple[dict[str, Parts], dict[str, Any] | None]:
            asked, outputs = self.traced(batch, cut, has_parts)
            of_forward.update({name: one.of_forward for name, one in asked.items()})
            return {name: one.values for name, one in asked.items()}, outputs

        signature = [specs, tf.TensorSpec((), tf.int32)]
        return tf.function(values, autograph=False, input_signature=signature), of_forward


def taken_as_means(names: Sequence[str]) -> str:
    """Return a note of values that would need all rows."""
    return (
        f"{', '.join(names)}: known from all rows together only; instead, the mean of what the parts of the batch give "
        "is taken; a single worker without micro_batch_size leaves the batch whole"
    )
