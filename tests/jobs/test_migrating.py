"""The programs of launch/migrating.md: what each becomes prints, on two workers and alone, what it printed before."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.launching import AS_IT_IS, BIN, ROOT, launch, needs_horovod, run
from support.pages import programs

PAGE = (ROOT / "launch/migrating.md").read_text()
SECTIONS = re.findall(r"^## From (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
PAIRS = {name: programs(text) for name, text in SECTIONS}
# Those of which "before" runs on today's Keras, in one process.
RUNS_ALONE = ("MultiWorkerMirroredStrategy", "a loop that accumulates gradients")
TAPE = "Horovod's DistributedGradientTape"


def in_turn(parts: Sequence[str]) -> str:
    """One program that runs several, each as if it were alone."""
    return "".join(f"exec(compile({part!r}, 'after', 'exec'), {{}})\n" for part in parts)


def losses(out: str) -> list[str]:
    return re.findall(r"loss (\S+)", out)


def test_every_section_has_a_program_before_and_one_after() -> None:
    assert len(PAIRS) == 5
    for name, blocks in PAIRS.items():
        assert len(blocks) == 2, name
        assert "distgrad" not in blocks[0]
        assert "distgrad.connect()" in blocks[1]
    assert {*RUNS_ALONE, TAPE} <= set(PAIRS)


def test_two_workers_print_what_one_prints(tmp_path: Path) -> None:
    afters = [after for _, after in PAIRS.values()]
    program = f"import os\nos.chdir({str(tmp_path)!r})\n{in_turn(afters)}"
    alone = run([sys.executable, "-c", program], env=AS_IT_IS)
    assert alone.status == 0, alone.err
    assert len(losses(alone.out)) == len(PAIRS)
    (job,) = launch("mpi", 2, ["-c", program])
    assert job.status == 0, job.err
    found = dict(zip(PAIRS, map(float, losses(job.out)), strict=True))
    expected = dict(zip(PAIRS, map(float, losses(alone.out)), strict=True))
    assert found == pytest.approx(expected, abs=2e-4)
    for name in RUNS_ALONE:
        before = run([sys.executable, "-c", PAIRS[name][0]], env=AS_IT_IS)
        assert before.status == 0, before.err
        assert float(losses(before.out)[0]) == pytest.approx(expected[name], abs=2e-4), name


@pytest.mark.thorough
@needs_horovod
def test_horovods_tape_prints_the_same() -> None:
    before, after = PAIRS[TAPE]
    job = run([BIN / "horovodrun", "--gloo", "-np", "2", sys.executable, "-c", before], env=AS_IT_IS)
    assert job.status == 0, job.err
    alone = run([sys.executable, "-c", after], env=AS_IT_IS)
    assert float(losses(job.out)[0]) == pytest.approx(float(losses(alone.out)[0]), abs=2e-4)
