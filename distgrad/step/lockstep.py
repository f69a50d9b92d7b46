"""Workers with unequal numbers of batches in step with one another: no one waits for ever for a worker that is done."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from distgrad.data.batch import as_tensors, no_rows_like


class Reported(Protocol):
    """The report of one step or evaluation."""

    @property
    def more(self) -> bool:
        """True if any worker has another batch."""


Report = TypeVar("Report", bound=Reported)


def until_all_are_done(
    take: Callable[[tuple[Any, ...], bool], Report], batches: Iterable[Any], like: Any
) -> Iterator[Report]:
    """Take a step for every batch, until the worker with most batches is done.

    A worker that has run out goes on with empty batches, which contribute nothing.

    Args:
        take: (batch, True if another follows) -> the step's report.
        batches: (x, y) or (x, y, sample_weight) each.
        like: a batch, or its `element_spec`, for a worker that has none; None if it is not known.
    """
    coming = map(as_tensors, batches)
    batch = next(coming, None)
    nothing = no_rows_like(like if batch is None else batch)
    more = True
    while more:
        following = next(coming, None)
        report = take(nothing if batch is None else batch, following is not None)
        # Whoever has a batch itself need not wait to hear whether others do.
        more = following is not None or report.more
        batch = following
        yield report
