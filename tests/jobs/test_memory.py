"""Memory does not grow with the number of micro-batches."""

from measure.memory import peak


def test_micro_batches_cost_no_memory() -> None:
    assert peak(32) <= 1.05 * peak(2)
