"""These tests run inside every worker: `mpirun -np 3 python -m pytest tests/workers`, and so on.

The engine is chosen as a user would, by how the process was launched and by DISTGRAD_BACKEND.
`jobs/test_worlds.py` launches them on every engine, all files in one process of each worker.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import distgrad
from distgrad.launching.world import World
from support import results

LOGICAL_CPUS = int(os.environ.get("DISTGRAD_TEST_LOGICAL_CPUS", "1"))
RESULTS = os.environ.get("DISTGRAD_TEST_RESULTS")  # the folder that jobs/test_worlds.py reads


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give every worker temporary folders of its own: pytest clears those it shares, while others write there."""
    config.option.basetemp = tempfile.mkdtemp(prefix="distgrad-test-")
    config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))
    if RESULTS:
        rank = World.from_environment(os.environ).rank
        config.pluginmanager.register(results.Recorder(Path(RESULTS, str(rank))))


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


@pytest.fixture(scope="module", autouse=True)
def _fresh_state(comm: distgrad.Communicator) -> None:
    """Let no file's tests find names, seeds or policies of those before; each worker draws numbers of its own."""
    keras.backend.clear_session()
    gc.freeze()  # what TensorFlow keeps of the files before need not be looked through at every collection
    keras.utils.set_random_seed(comm.rank)


@pytest.fixture
def several_processes(comm: distgrad.Communicator) -> None:
    if comm.size == comm.span:
        pytest.skip("one process has nobody to differ from")
