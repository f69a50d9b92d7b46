"""The core under sanitizers: integer sums, right to the last bit, of threads and of processes."""

from pathlib import Path

import pytest

from native import harness
from native.harness import MEMORY, THREADS, Build

RUNS = {
    THREADS: [("checks",), ("threads", 2), ("threads", 4)],
    MEMORY: [("checks",), ("threads", 1), ("threads", 3), ("processes", 2), ("processes", 4)],
}


@pytest.mark.skipif(bool(harness.missing("g++")), reason=harness.missing("g++"))
@pytest.mark.parametrize("build", RUNS, ids=lambda build: build.name)
def test_the_core_under_a_sanitizer(build: Build, tmp_path: Path) -> None:
    program = harness.link(build, harness.compiled(build, tmp_path), tmp_path)
    for words in RUNS[build]:
        done = harness.run(build, program, *words)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", f"ok {words[0]}\n"), words
