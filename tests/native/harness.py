"""Build and run harness.cpp with the sources of the core that need no TensorFlow."""

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from support.launching import ROOT

CORE = ROOT / "distgrad" / "native"
HARNESS = Path(__file__).with_name("harness.cpp")
SOURCES = (
    "accumulate.cpp",
    "meeting.cpp",
    "publication.cpp",
    "row_lists.cpp",
    "shared_memory.cpp",
    "sparse_variable.cpp",
    "sum_request.cpp",
    "vector_math.cpp",
    "window.cpp",
)
# The harness maps a file of all threads at one address, see there.
LINKED = ("-Wl,--wrap=mmap,--wrap=munmap", "-pthread")
SECONDS = 120


class Build(NamedTuple):
    """How the harness is compiled."""

    name: str
    flags: tuple[str, ...]
    compiler: str = "g++"
    emulator: tuple[str, ...] = ()


# Where addresses are more random than older sanitizers of threads can bear, they are not to be.
RANDOM_BITS = Path("/proc/sys/vm/mmap_rnd_bits")
BEARABLE = 28
_is_random = RANDOM_BITS.exists() and int(RANDOM_BITS.read_text()) > BEARABLE
THREADS = Build(
    "thread", ("-O1", "-g1", "-fsanitize=thread"), emulator=("setarch", "--addr-no-randomize") if _is_random else ()
)
# Without optimization, which takes twice as long to compile.
MEMORY = Build("address,undefined", ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"))
AARCH64 = Build("aarch64", ("-O2", "-static"), "aarch64-linux-gnu-g++", ("qemu-aarch64",))


def missing(*programs: str) -> str:
    """The reason to skip a test that needs programs, or ""."""
    absent = [program for program in programs if shutil.which(program) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def compile_file(build: Build, source: Path, folder: Path) -> Path:
    """Compile one file and return the object."""
    made = folder / f"{source.stem}.o"
    _run([build.compiler, "-std=c++17", *build.flags, "-I", CORE, "-c", source, "-o", made])
    return made


def link(build: Build, objects: Sequence[Path], folder: Path) -> Path:
    made = folder / "harness"
    _run([build.compiler, *build.flags, *objects, *LINKED, "-o", made])
    return made


def compiled(build: Build, folder: Path) -> list[Path]:
    """The objects of all sources, two of which are compiled at a time."""
    files = [CORE / name for name in SOURCES] + [HARNESS]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: compile_file(build, source, folder), files))


def run(build: Build, program: Path, *words: object, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run the harness to its end, or raise `subprocess.TimeoutExpired`."""
    command = [*build.emulator, str(program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
