"""Run tests of workers on two MPI ranks with a core that AddressSanitizer watches.

    PYTHONPATH=tests python -m native.under_asan [tests/workers/test_communicator.py ...]

Ends with the tests' status, or 1 where the sanitizer has ended a rank, and prints its reports. Python, TensorFlow and
MPI are not watched, but what they allocate and free is known, as libasan is loaded before them. Leaks are not looked
for: Python and TensorFlow keep what they have until the end.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from native.harness import CORE
from support.launching import CLEAN, ROOT

FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-fsanitize=address")
# TensorFlow's libraries define some things twice, and allocate and free some in two ways.
OPTIONS = "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0:verify_asan_link_order=0"
RANKS = 2


def build(folder: Path) -> None:
    """Copy the package, and put a core under the sanitizer in the place of its own."""
    package = folder / "distgrad"
    shutil.copytree(ROOT / "distgrad", package, ignore=shutil.ignore_patterns("__pycache__"))
    core = package / "native" / "core.abi3.so"
    subprocess.run(["g++", *FLAGS, *sorted(CORE.glob("*.cpp")), "-o", core], check=True)


def path_of(library: str) -> str:
    """Where the compiler has a library."""
    command = ["g++", f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(tests: list[str]) -> int:
    """Build, run the tests, and return their status."""
    libraries = [path_of("libasan.so"), path_of("libstdc++.so.6")]  # without the second one it finds no exceptions
    with tempfile.TemporaryDirectory(prefix="distgrad-asan-") as name:
        build(Path(name))
        settings = {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": f"{OPTIONS}:log_path={name}/report",  # pytest takes what is written to stderr
            "PYTHONPATH": os.pathsep.join([name, CLEAN["PYTHONPATH"]]),
            "DISTGRAD_TEST_SIZE": str(RANKS),
        }
        # The launcher itself is not preloaded: `env` sets what the ranks alone have.
        ranks = ["env", *(f"{key}={value}" for key, value in settings.items()), sys.executable, "-m", "pytest", "-q"]
        launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(RANKS)]
        status = subprocess.run([*launcher, *ranks, *tests], env=CLEAN, cwd=ROOT, check=False).returncode
        for report in sorted(Path(name).glob("report.*")):
            print(report.read_text(), file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["tests/workers/test_communicator.py"]))
