"""The gradient noise scale against cases whose answer is known exactly."""

import itertools

import numpy as np
import pytest

from distgrad.reports.noise import average, estimate

POPULATION = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]])  # the gradients of three equally likely examples
TRUE = POPULATION.mean(0)
TRACE = np.square(POPULATION - TRUE).sum(1).mean()


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (2, 1, 2), (1, 1, 1, 1, 1)])
def test_estimates_are_right_on_average_over_all_batches_there_are(sizes: tuple[int, ...]) -> None:
    """Every one of the 3^N batches that can be drawn, each counted once."""
    ends = np.cumsum([0, *sizes])
    found = []
    for draw in itertools.product(POPULATION, repeat=sum(sizes)):
        sums = [np.sum(draw[first:last], axis=0) for first, last in itertools.pairwise(ends)]
        between = sum(one @ one / size for one, size in zip(sums, sizes, strict=True))
        found.append(estimate(between, float(sum(sums) @ sum(sums)), sum(sizes), len(sizes)))
    assert np.mean([one.trace for one in found]) == pytest.approx(TRACE, rel=1e-12)
    assert np.mean([one.squared_norm for one in found]) == pytest.approx(TRUE @ TRUE, rel=1e-12)
    together = average((one.trace, one.squared_norm) for one in found)
    assert together.scale == pytest.approx(TRACE / (TRUE @ TRUE), rel=1e-12)


@pytest.mark.parametrize(("micro_batches", "weight"), [(1, 4.0), (0, 0.0), (2, 0.0), (2, np.nan)])
def test_one_micro_batch_tells_nothing(micro_batches: int, weight: float) -> None:
    assert np.isnan(estimate(3.0, 2.0, weight, micro_batches)).all()


def test_what_chance_and_nan_make_of_it() -> None:
    assert estimate(between=8.0, summed_squares=0.0, weight=2.0, micro_batches=2).scale == np.inf
    assert np.isnan(estimate(np.nan, np.nan, 4.0, 2)).all()
    assert np.isnan(average([])).all()
    assert average([(np.nan, np.nan), (2.0, 4.0), (4.0, 4.0)]) == (3.0, 4.0, 0.75)
