"""Every example in the README and in the guides of distgrad's folders runs."""

import sys
from pathlib import Path

from support.launching import AS_IT_IS, ROOT, launch, run
from support.pages import programs

README = (ROOT / "README.md").read_text()
GUIDES = sorted(ROOT.glob("distgrad/*/README.md"))  # whose examples go on from the README's
EXAMPLES = [README, *(guide.read_text() for guide in GUIDES)]
PROGRAM = "\n".join(program for page in EXAMPLES for program in programs(page))


def program(folder: Path) -> str:
    """All examples, in a folder of their own."""
    return f"import os\nos.chdir({str(folder)!r})\n{PROGRAM}"


def test_the_examples_run_in_order(tmp_path: Path) -> None:
    assert PROGRAM.count("distgrad.") >= 4
    job = run([sys.executable, "-W", "error::UserWarning", "-c", program(tmp_path)], env=AS_IT_IS)
    assert job.status == 0, job.err
    assert "workers 1" in job.out
    assert "max |entry|" in job.out


def test_and_on_two_workers(tmp_path: Path) -> None:
    job = launch("mpi", 2, ["-c", program(tmp_path)])[0]
    assert job.status == 0, job.err
    assert "workers 2" in job.out
