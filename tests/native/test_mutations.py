"""The harness notices faults of the core: those of mutations.py."""

import pytest

from native import harness, mutations


@pytest.mark.thorough
@pytest.mark.skipif(bool(harness.missing("g++")), reason=harness.missing("g++"))
def test_every_fault_is_noticed() -> None:
    assert mutations.unnoticed() == []
