"""The first cases of each target of `measure.fuzz`, and what that has found."""

from pathlib import Path

import pytest

from support.fuzz_targets import TARGETS, generator

CASES = {"checkpoints": 40, "reports": 60, "environments": 3000, "hosts": 5000}


@pytest.mark.fault(43, 46, 47, 48)
@pytest.mark.parametrize("target", TARGETS)
def test_right_or_one_clear_error(target: str, tmp_path: Path) -> None:
    run = TARGETS[target](tmp_path)
    for case in range(CASES[target]):
        run(generator(target, case))  # measure.fuzz --case runs one of them alone
