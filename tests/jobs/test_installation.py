"""From a fresh clone: the environment, and the main job as a newcomer runs it."""

import shutil
from pathlib import Path

import pytest

from support.launching import AS_IT_IS, ROOT, run
from support.lines import STEP

STEPS = 12 * 23  # 1,437 rows in batches of 64, the last of 29


@pytest.mark.alone  # it installs distgrad anew where the others' processes look for it
def test_quickstart() -> None:
    job = run([ROOT / "launch" / "quickstart"], env=AS_IT_IS)
    assert job.status == 0, job.err[-3000:]
    assert sum(bool(STEP.fullmatch(line)) for line in job.out.splitlines()) == STEPS
    assert "workers 2" in job.out
    assert float(job.out.strip().rsplit(" ", 1)[-1]) >= 0.95


@pytest.mark.parametrize(("missing", "fix"), [("g++", "apt-get install g++"), ("make", "apt-get install make")])
def test_horovod_s_build_names_what_it_lacks(tmp_path: Path, missing: str, fix: str) -> None:
    """Under a PATH of links to what is there; cmake and mpicxx come with the environment."""
    for program in {"bash", "dirname", "env", "g++", "make"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program) or "/bin/true")
    job = run(["bash", ROOT / "launch" / "install-horovod"], env={"PATH": str(tmp_path)})
    assert (job.status, job.out) == (69, "")
    assert job.err == f"launch/install-horovod: {missing} is missing; on Debian: {fix}\n"
