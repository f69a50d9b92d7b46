"""Slices of the flat vector of all weights: which worker updates which entries.

    [ variable 0 | variable 1 | ... ]      (entries,) the layout of flat_vector.py
    [    run     |      run  |  run ]      neighbouring entries that are updated alike, or one whole variable
    [   slice 0   |    slice 1      ]      runs of one worker, cut where that is allowed

The slices stand in the order of their numbers, so that together they are the vector, and each takes about as many
entries to update as any other.
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distgrad.gradients.flat_vector import Place

GRAIN = 64  # entries; a run is cut where TensorFlow's loops, which take several entries at once, begin anew anyway


class Freedom(enum.Enum):
    """How variables may be updated.

    Attributes:
        NONE: each as a whole.
        TO_CUT: in parts.
        TO_JOIN: in parts, and parts of neighbours as one.
    """

    NONE = enum.auto()
    TO_CUT = enum.auto()
    TO_JOIN = enum.auto()


class Kind(NamedTuple):
    """The treatment of a variable by the optimizer. Entries of the same kind are updated alike.

    Attributes:
        dtype: the variable's.
        decays: whether its weights decay.
        alone: its number, if it must not be joined with others; else None.
        whole: its number, if it must not be cut either; else None.
    """

    dtype: str
    decays: bool = False
    alone: int | None = None
    whole: int | None = None


class Run(NamedTuple):
    """Entries first..last of the vector that are of one kind."""

    first: int
    last: int
    kind: Kind

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.last - self.first


class Overlap(NamedTuple):
    """What a run and a variable have in common.

    Attributes:
        number: the variable's.
        of_variable: its entries.
        of_run: the same entries, counted from where the run begins.
    """

    number: int
    of_variable: slice
    of_run: slice


class Slices(NamedTuple):
    """The vector, shared out.

    Attributes:
        runs: those of each slice, in ascending order.
        bounds: where each slice begins, and the end of the last one.
    """

    runs: list[list[Run]]
    bounds: list[int]


def runs_of(places: Sequence[Place], kinds: Sequence[Kind]) -> list[Run]:
    """Join neighbouring variables of one kind.

    Args:
        places: of all variables, none of them sparse.
        kinds: theirs.
    """
    runs: list[Run] = []
    for place, kind in sorted(zip(places, kinds, strict=True), key=lambda pair: pair[0].first):
        assert place.last is not None
        if runs and kind == runs[-1].kind:
            runs[-1] = runs[-1]._replace(last=place.last)
        else:
            runs.append(Run(place.first, place.last, kind))
    return runs


def overlaps(places: Sequence[Place], run: Run) -> Iterator[Overlap]:
    """Give the variables that a run has entries of, in the order of their places."""
    for number, place in sorted(enumerate(places), key=lambda pair: pair[1].first):
        assert place.last is not None
        first, last = max(run.first, place.first), min(run.last, place.last)
        if first < last:
            of_variable = slice(first - place.first, last - place.first)
            yield Overlap(number, of_variable, slice(first - run.first, last - run.first))


def share_out(runs: Sequence[Run], count: int, entries: int) -> Slices:
    """Cut a vector into slices of about as many entries to update.

    A slice differs from the mean by fewer than `GRAIN` entries where runs may be cut, and by no more than the largest
    variable where they may not.

    Args:
        runs: in ascending order.
        count: how many slices.
        entries: of the vector.
    """
    total, done = sum(run.size for run in runs), 0
    slices: list[list[Run]] = [[] for _ in range(count)]
    for run in runs:
        first = run.first
        while first < run.last:
            if run.kind.whole is None:
                number = done * count // total
                wanted = first - run.first + -(-total * (number + 1) // count) - done
                last = min(run.last, run.first - -wanted // GRAIN * GRAIN)
            else:
                number, last = (2 * done + run.size) * count // (2 * total), run.last
            slices[min(number, count - 1)].append(Run(first, last, run.kind))
            done, first = done + last - first, last
    return Slices(slices, _bounds(slices, entries))


def _bounds(slices: Sequence[Sequence[Run]], entries: int) -> list[int]:
    bounds = [entries]
    for runs in reversed(slices):
        bounds.append(runs[0].first if runs else bounds[-1])
    return [0, *reversed(bounds[:-1])]
