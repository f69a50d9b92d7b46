"""What all tests have in common: the environment, and what several of them need."""

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hosts import CannotMake, Hosts, two_hosts
from support.launching import ROOT, run

# Before TensorFlow is imported by any test; its messages about absent GPUs are not what a test prints.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# They run inside the workers that jobs/test_worlds.py launches.
collect_ignore = ["workers"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from support.two_at_a_time import place  # noqa: PLC0415 (it takes xdist, without which pytest works, too)

        items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from support.two_at_a_time import Scheduling  # noqa: PLC0415

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that is marked `alone` wait for the others, and the others for it."""
    with (ROOT / "pyproject.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


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
        with two_hosts() as made:
            yield made
    except CannotMake as error:
        pytest.skip(str(error))
