"""What all tests have in common: the environment, and what several of them need."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hosts import CannotMake, Hosts, joined_hosts
from support.launching import run, stop_what_was_left

# Before TensorFlow is imported by any test; its messages about absent GPUs are not what a test prints.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# They run inside the workers that jobs/test_worlds.py launches.
collect_ignore = ["workers"]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        from support import two_at_a_time  # noqa: PLC0415 (it takes xdist, without which pytest works, too)

        config.pluginmanager.register(two_at_a_time)


@pytest.fixture(autouse=True)
def _no_processes_left() -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    stop_what_was_left()


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment like this one, made of links, that lacks mpi4py and MPI and has a Horovod without TensorFlow."""
    root = tmp_path_factory.mktemp("without")
    assert run([sys.executable, "-m", "venv", "--without-pip", root]).status == 0
    name = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    theirs, ours = Path(sys.prefix, name), root / name
    for entry in theirs.iterdir():
        if not entry.name.startswith(("mpi4py", "horovod")):
            (ours / entry.name).symlink_to(entry)
    (ours / "horovod" / "tensorflow").mkdir(parents=True)
    (ours / "horovod" / "__init__.py").touch()
    return root


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts, if this system makes namespaces for us."""
    try:
        with joined_hosts() as made:
            yield made
    except CannotMake as error:
        pytest.skip(str(error))
