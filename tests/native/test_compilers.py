"""Every compiler that is there compiles the core without a warning, and its sums are right on another processor."""

import subprocess
from pathlib import Path

import pytest

from native import harness
from native.harness import AARCH64, CORE

# Clang means signs, too, by the last of them.
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Werror")
OTHERS = ("g++-10", "g++-11", "g++-13", "clang++", "aarch64-linux-gnu-g++")


def by(compiler: str, *marks: pytest.MarkDecorator) -> object:
    absent = harness.missing(compiler)
    return pytest.param(compiler, marks=[*marks, pytest.mark.skipif(bool(absent), reason=absent)])


@pytest.mark.parametrize("compiler", [by("g++"), *(by(other, pytest.mark.thorough) for other in OTHERS)])
def test_no_compiler_warns(compiler: str) -> None:
    """Optimized, since some warnings come of that; for g++, whose build by pip is optimized, without."""
    sources = sorted(CORE.glob("*.cpp"))
    level = "-fsyntax-only" if compiler == "g++" else "-O1"
    for source in sources:
        command = [compiler, "-std=c++17", level, "-fPIC", *WARNINGS, "-c", source, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), source.name


@pytest.mark.thorough
@pytest.mark.skipif(
    bool(harness.missing(AARCH64.compiler, *AARCH64.emulator)),
    reason=harness.missing(AARCH64.compiler, *AARCH64.emulator),
)
def test_the_core_on_aarch64(tmp_path: Path) -> None:
    program = harness.link(AARCH64, harness.compiled(AARCH64, tmp_path), tmp_path)
    for words in (("checks",), ("threads", 3), ("processes", 2)):
        done = harness.run(AARCH64, program, *words)
        assert (done.returncode, done.stdout) == (0, f"ok {words[0]}\n"), done.stderr
