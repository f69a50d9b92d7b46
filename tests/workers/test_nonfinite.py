"""What is not finite on one worker, or in the sum alone, is found by all of them."""

import numpy as np
import pytest

from distgrad import Communicator
from distgrad.errors import NonFiniteGradient
from support.steps import integers, linear, own, product, quiet, weights


@pytest.mark.every_engine
@pytest.mark.three_workers
@pytest.mark.fault(18)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nonfinite_on_one_worker_skips_the_step_on_all(comm: Communicator, poison: float) -> None:
    x, y = integers()
    x[0, 0] = poison
    model = linear(comm)
    report = quiet(comm, model, product)(*own(comm, (x, y)))
    assert (report.nonfinite, report.applied, report.nonfinite_ranks) == (1, False, [0])
    assert weights(model).tolist() == [1.0, 1.0]
    assert '"gradient_sum": null' in report.as_json()


@pytest.mark.fault(18)
def test_overflow_in_the_sum_alone_is_found(comm: Communicator) -> None:
    """Every worker's own sum is finite; only the total is not. One worker's sum is the total."""
    huge = np.full((comm.size, 2), 3e38 if comm.size > 1 else np.inf, "float32")
    first = comm.rank
    model = linear(comm, 0.0)
    step = quiet(comm, model, product, reduction="sum")
    report = step(huge[first : first + comm.span], np.ones((comm.span, 1), "float32"))
    assert (report.nonfinite, report.applied) == (2, False)
    assert report.nonfinite_ranks == ([] if comm.size > 1 else [0])
    assert weights(model).tolist() == [0.0, 0.0]


def test_nonfinite_can_raise_on_all_workers_or_be_applied(comm: Communicator) -> None:
    x, y = integers()
    x[0, 1] = np.nan
    model = linear(comm)
    step = quiet(comm, model, product, on_nonfinite="raise")
    with pytest.raises(NonFiniteGradient, match=r"rank=0 step=1: 1 non-finite.*kernel") as caught:
        step(*own(comm, (x, y)))
    assert caught.value.status == 65
    assert weights(model).tolist() == [1.0, 1.0]
    report = quiet(comm, model, product, on_nonfinite="apply")(*own(comm, (x, y)))
    assert report.applied
    assert np.isnan(weights(model)).tolist() == [False, True]
