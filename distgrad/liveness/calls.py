"""The calls that workers meet in: each must be in the same one, else they wait for each other in different sums.

A worker says on its page what it has called, so that this can be told where the sum itself cannot: engines complain of
vectors that differ, or wait for ever.
"""

from collections.abc import Mapping

from distgrad.errors import FitMismatch
from distgrad.liveness.status_page import CALL, StatusPage

CALLS = ("a step", "fit()", "evaluate()", "predict()", "train_on_batch()")  # by the number on the page


def difference(called: Mapping[int, str]) -> FitMismatch | None:
    """Return the error of workers that have called different things, None if all have called the same.

    Args:
        called: what, by rank; some of CALLS.
    """
    if len(set(called.values())) == 1:
        return None
    places = ", ".join(f"{call} on rank {rank}" for rank, call in sorted(called.items()))
    call = next(call for call in called.values() if call != CALLS[0])
    return FitMismatch(
        places, f"call {call} on every worker; keras.Model.predict asks no other worker", everywhere=True
    )


def called(pages: Mapping[int, StatusPage]) -> dict[int, str]:
    """Return what the processes of these pages have called, by rank."""
    return {rank: CALLS[page[CALL]] for rank, page in pages.items()}
