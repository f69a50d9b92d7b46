"""The engines by name, the packages they need, and the errors where one is unknown or missing."""

import difflib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from distgrad.errors import EngineMissing, UnknownBackend, shown


class Engine(NamedTuple):
    """An engine that workers can communicate through.

    Attributes:
        module: its module in distgrad.collectives.
        package: the Python package that it needs, None if it needs none.
        fix: how to get that package.
    """

    module: str
    package: str | None
    fix: str


ENGINES = {
    "solo": Engine("solo", None, ""),
    "mpi": Engine("mpi", "mpi4py", "pip install 'distgrad[mpi]' installs mpi4py and an MPI for it"),
    "horovod": Engine("horovod", "horovod", "build it for this TensorFlow with launch/install-horovod"),
    "tf": Engine("tf_distribute", None, ""),
}


def require_known(backend: str) -> None:
    """Check that a backend's name is "auto" or one of ENGINES.

    Raises:
        UnknownBackend: it is not; the error suggests the most similar name.
    """
    names = ["auto", *ENGINES]
    if backend in names:
        return
    close = difflib.get_close_matches(backend.lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
    raise UnknownBackend(f"there is no backend {shown(backend)} among {', '.join(names)}", hint, everywhere=True)


def is_installed(package: str) -> bool:
    """True if Python finds the package, which is not imported."""
    return importlib.util.find_spec(package) is not None


def require_installed(engine: Engine) -> None:
    """Check that the package of an engine is there.

    Raises:
        EngineMissing: it is not, or it is a Horovod that was built without TensorFlow.
    """
    if engine.package is not None and not is_installed(engine.package):
        raise EngineMissing(f"{engine.package} is not installed", engine.fix, everywhere=True)
    if engine.package == "horovod":
        _require_horovod_for_tensorflow(engine)


def _require_horovod_for_tensorflow(engine: Engine) -> None:
    """Look for Horovod's TensorFlow library: its build silently leaves out frameworks that it does not find."""
    package = importlib.util.find_spec("horovod")
    folders = list(package.submodule_search_locations or []) if package else []
    if not any(list(Path(folder, "tensorflow").glob("mpi_lib*.so")) for folder in folders):
        raise EngineMissing("this Horovod was built without TensorFlow", engine.fix, everywhere=True)
