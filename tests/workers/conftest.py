"""These tests run inside every worker: `mpirun -np 3 python -m pytest tests/workers`, and so on.

The engine is chosen as a user would, by how the process was launched and by DISTGRAD_BACKEND.
`jobs/test_worlds.py` launches them on every engine.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import tensorflow as tf
from support import fast_keras  # noqa: F401

import distgrad

LOGICAL_CPUS = int(os.environ.get("DISTGRAD_TEST_LOGICAL_CPUS", "1"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give every worker temporary folders of its own: pytest clears those it shares, while others write there."""
    config.option.basetemp = tempfile.mkdtemp(prefix="distgrad-test-")
    config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))


@pytest.fixture(scope="session")
def comm() -> Iterator[distgrad.Communicator]:
    if LOGICAL_CPUS > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * LOGICAL_CPUS)
    comm = distgrad.connect()
    assert comm.size == int(os.environ["DISTGRAD_TEST_SIZE"]), "the launcher and the engine disagree"
    yield comm
    comm.barrier()
    comm.close()


@pytest.fixture
def several_processes(comm: distgrad.Communicator) -> None:
    if comm.size == comm.span:
        pytest.skip("one process has nobody to differ from")
