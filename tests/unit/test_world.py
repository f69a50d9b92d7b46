"""Reading the launcher's environment: pure, so every case is a dictionary."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgrad.errors import BadEnvironment
from distgrad.launching.world import LAUNCHER_VARIABLES, SINGLE_PROCESS, World


def tf_config(**changes: object) -> str:
    config = {
        "cluster": {"chief": ["a:1"], "worker": ["a:2", "b:1", "b:2"]},
        "task": {"type": "worker", "index": 1},
    }
    return json.dumps(config | changes)


def test_nothing_set_is_a_world_of_one() -> None:
    assert World.from_environment({"PATH": "/bin"}) == SINGLE_PROCESS == World(None, "solo", 0, 1, 0, 1)


def test_open_mpi() -> None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    environment = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "5821", strict=True)}
    assert World.from_environment(environment) == World("Open MPI", "mpi", 5, 8, 2, 1)


def test_horovodrun_inside_slurm_is_horovod() -> None:
    environment = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    assert World.from_environment(environment) == World("horovodrun", "horovod", 1, 2, 1, 2)


def test_slurm_abbreviates_equal_nodes() -> None:
    environment = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "6",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    }
    assert World.from_environment(environment) == World("srun", "mpi", 3, 6, 1, 2)


def test_a_batch_script_s_own_shell_is_no_worker() -> None:
    assert World.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == SINGLE_PROCESS
    assert World.from_environment({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == SINGLE_PROCESS


def test_tf_config_counts_the_chief_first() -> None:
    world = World.from_environment({"TF_CONFIG": tf_config()})
    assert world == World("TF_CONFIG", "tf", 2, 4, 0, 2)
    chief = World.from_environment({"TF_CONFIG": tf_config(task={"type": "chief", "index": 0})})
    assert (chief.rank, chief.local_rank, chief.local_size) == (0, 0, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "TF_CONFIG is broken"),
        ("[]", "TF_CONFIG is broken"),
        ("{}", "'cluster'"),
        (tf_config(task={"type": "worker", "index": 3}), "IndexError"),
        (tf_config(task={"type": "worker", "index": -1}), "worker -1"),
        (tf_config(task={"type": "worker", "index": "1"}), "TypeError"),
        (tf_config(cluster={"worker": ["a:1", "a:1"]}), "two workers the address a:1"),
        (tf_config(cluster={"ps": ["a:1", "b:1"]}, task={"type": "ps", "index": 0}), "the task ps 0"),
    ],
)
def test_broken_tf_config_says_how_it_should_look(text: str, says: str) -> None:
    with pytest.raises(BadEnvironment, match=says) as caught:
        World.from_environment({"TF_CONFIG": text})
    assert (caught.value.code, caught.value.status) == ("DG004", 78)


@pytest.mark.parametrize("launcher", LAUNCHER_VARIABLES)
@given(rank=st.integers(-5, 20), size=st.integers(-5, 20))
def test_ranks_must_fit_their_size(launcher: object, rank: int, size: int) -> None:
    environment = {launcher.rank: str(rank), launcher.size: str(size)}
    if size == 1 and launcher.starts_anything:
        assert World.from_environment(environment) == SINGLE_PROCESS
    elif 0 <= rank < size:
        world = World.from_environment(environment)
        assert (world.rank, world.size) == (rank, size)
    else:
        with pytest.raises(BadEnvironment, match=f"{launcher.rank}={rank}"):
            World.from_environment(environment)


@pytest.mark.parametrize("text", ["", "one", "1.5", "0x1"])
def test_what_is_no_integer_is_named(text: str) -> None:
    with pytest.raises(BadEnvironment, match=r"OMPI_COMM_WORLD_SIZE=.*is no integer"):
        World.from_environment({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": text})
