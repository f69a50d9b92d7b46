"""Memory does not grow with the number of micro-batches, nor what a process holds with what it has closed."""

import pytest

from measure.leaks import measure
from measure.memory import peak


def test_micro_batches_cost_no_memory() -> None:
    assert peak(32) <= 1.05 * peak(2)


@pytest.mark.fault(44)
def test_a_closed_communicator_holds_no_descriptor_and_no_thread() -> None:
    for early, late in measure("connect and close", 50):
        assert late[:2] == early[:2]
