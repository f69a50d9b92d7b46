"""Reading the launcher's environment: pure, so every case is a dictionary."""

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgrad.errors import BadEnvironment, WorldMismatch
from distgrad.launching.world import LAUNCHER_VARIABLES, SINGLE_PROCESS, LauncherVariables, World


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
    environment = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "5824", strict=True)}
    assert World.from_environment(environment) == World("Open MPI", "mpi", 5, 8, 2, 4)


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


@pytest.mark.parametrize(("node", "local_size"), [("0", 1), ("1", 2), ("3", 2), ("4", 3)])
def test_slurm_writes_the_tasks_of_all_nodes(node: str, local_size: int) -> None:
    environment = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "10", "SLURM_LOCALID": "0", "SLURM_NODEID": node}
    world = World.from_environment(environment | {"SLURM_STEP_TASKS_PER_NODE": "1,2(x3),3"})
    assert world.local_size == local_size


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


@pytest.mark.parametrize(
    "text", ["", "one", "1.5", "0x1", "1_0", "+2", " 2", "\u0662", "2(x1)", "9" * 5000, "\x1b[31m"]
)
def test_what_is_no_integer_is_named(text: str) -> None:
    with pytest.raises(BadEnvironment, match=r"OMPI_COMM_WORLD_SIZE=.*is no integer"):
        World.from_environment({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": text})


def refused(environment: dict[str, str]) -> str:
    """Why it is refused: at once, on one line that a terminal can show."""
    began = time.monotonic()
    with pytest.raises(BadEnvironment) as caught:
        World.from_environment(environment)
    assert time.monotonic() - began < 1
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 600
    assert caught.value.status == 78
    return said


def workers(addresses: object, kind: object = "worker", index: object = 0, **others: object) -> str:
    return json.dumps({"cluster": {"worker": addresses, **others}, "task": {"type": kind, "index": index}})


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    "text",
    [
        *(workers(addresses) for addresses in ([1, 2], [None], None, {"a:1": 1}, "host:1", [["a:1"]], [], [""])),
        *(
            workers([one])
            for one in ("a", "a:", ":1", "a:x", "a:-1", "a:65536", "a:1/x", "a b:1", "a:\u0661", "-\x00:1")
        ),
        *(workers([one] * 2) for one in ("\x1b[31mX:1", "a\nFAKE: line:1", "\u202e:1", "\ud800:1", "x" * 10**5 + ":1")),
        *(workers(["a:1", "b:1"], index=index) for index in ("0", True, 0.5, None, [0], -1, 2, 10**30, -(10**4000))),
        *(workers(["a:1"], kind=kind) for kind in (["worker"], None, 1, "ps", "\x1b[31m", "w" * 10**5, "evaluator")),
        *(workers(["a:1"], chief=chief) for chief in ("xy", None, [3], {}, ["b:1", "c:1"])),
        workers([f"h{n}:1" for n in range(20_000)] * 2),
        *("[" * 100_000, '{"cluster":' * 50_000, "\0", "[]", "5", "null", '"x"', "NaN", '{"cluster": null, "task": 1}'),
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": ' + "9" * 10_000 + "}}",
    ],
    ids=lambda text: f"{text[:40]!a} {len(text)}",
)
def test_a_hostile_tf_config(text: str) -> None:
    assert "TF_CONFIG" in refused({"TF_CONFIG": text})


def test_many_workers_of_tensorflow() -> None:
    addresses = [f"h{n // 4}:{n}" for n in range(20_000)] + ["[::1]:1", "[fe80::1%eth0]:2", "node-1.example.org:65535"]
    began = time.monotonic()
    world = World.from_environment({"TF_CONFIG": workers(addresses, index=10_001)})
    assert world == World("TF_CONFIG", "tf", 10_001, 20_003, 1, 4)
    assert time.monotonic() - began < 1


@pytest.mark.fault(48)
@pytest.mark.parametrize("launcher", LAUNCHER_VARIABLES, ids=lambda one: one.launcher)
def test_hostile_numbers_of_a_launcher(launcher: LauncherVariables) -> None:
    good = {launcher.rank: "1", launcher.size: "4", launcher.local_rank: "1", launcher.local_size: "2"}
    assert World.from_environment(good) == World(launcher.launcher, launcher.backend, 1, 4, 1, 2)
    for name in good:
        for text in ("-1", "", "x", "1.0", "1_0", "\x1b[31m1", "1\n", "9" * 5000, "99", "\u0661", "\ud800"):
            if name == launcher.size and text == "99":
                continue
            said = refused(good | {name: text})
            assert name in said
    refused(good | {launcher.local_size: "1"})
    refused(good | {launcher.local_size: "5"})
    refused(good | {launcher.local_rank: "2"})


# ---- two launchers

RANK_OF: dict[str, Callable[[int, int], dict[str, str]]] = {
    one.launcher: lambda rank, size, one=one: {one.rank: str(rank), one.size: str(size)} for one in LAUNCHER_VARIABLES
}
RANK_OF["TF_CONFIG"] = lambda rank, size: {"TF_CONFIG": workers([f"h{n}:1" for n in range(size)], index=rank)}


def world_of(**places: tuple[int, int]) -> tuple[str | None, int, int]:
    """What follows from the variables of several launchers."""
    environment: dict[str, str] = {}
    for name, (rank, size) in places.items():
        environment |= RANK_OF[name.replace("_MPI", " MPI")](rank, size)
    return World.from_environment(environment)[:1] + World.from_environment(environment)[2:4]


@pytest.mark.parametrize(
    ("places", "world"),
    [
        ({"srun": (0, 1), "TF_CONFIG": (1, 2)}, ("TF_CONFIG", 1, 2)),
        ({"srun": (1, 2), "TF_CONFIG": (1, 2)}, ("TF_CONFIG", 1, 2)),
        ({"Open_MPI": (0, 1), "TF_CONFIG": (1, 2)}, ("TF_CONFIG", 1, 2)),
        ({"srun": (0, 1), "torchrun": (1, 2)}, ("torchrun", 1, 2)),
        ({"Open_MPI": (0, 1), "torchrun": (1, 2)}, ("torchrun", 1, 2)),
        ({"Open_MPI": (1, 2), "torchrun": (1, 2)}, ("Open MPI", 1, 2)),
        ({"Open_MPI": (1, 2), "torchrun": (0, 1)}, ("Open MPI", 1, 2)),
        ({"srun": (0, 3), "Open_MPI": (4, 6)}, ("Open MPI", 4, 6)),  # srun has started mpirun's daemons
        ({"srun": (2, 3), "MPICH": (2, 3), "Open_MPI": (4, 6)}, ("Open MPI", 4, 6)),  # the same, with PMI
        ({"srun": (2, 3), "MPICH": (2, 3)}, ("MPICH", 2, 3)),  # srun --mpi=pmi2
        ({"srun": (2, 3), "Open_MPI": (0, 1)}, ("Open MPI", 0, 1)),  # a job of one process in each task
        ({"srun": (0, 3), "Open_MPI": (1, 2), "TF_CONFIG": (1, 2)}, ("TF_CONFIG", 1, 2)),
        ({"srun": (0, 4), "horovodrun": (1, 2)}, ("horovodrun", 1, 2)),
        ({"srun": (0, 1), "torchrun": (0, 1)}, (None, 0, 1)),
    ],
)
def test_one_launcher_inside_another(places: dict[str, tuple[int, int]], world: tuple[str | None, int, int]) -> None:
    assert world_of(**places) == world


def test_the_numbers_of_every_launcher_are_looked_at() -> None:
    for places in ({"horovodrun": (0, 4), "torchrun": (3, 0)}, {"Open_MPI": (0, 1), "MPICH": (0, -1)}):
        with pytest.raises(BadEnvironment, match="does not fit"):
            world_of(**places)


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"TF_CONFIG": (0, 1), "Open_MPI": (1, 2)}, "TF_CONFIG says that this is worker 0 of 1, but Open MPI says wor"),
        (
            {"TF_CONFIG": (0, 2), "Open_MPI": (1, 2)},
            "unset TF_CONFIG, or OMPI_COMM_WORLD_RANK and OMPI_COMM_",
        ),
        ({"TF_CONFIG": (0, 2), "srun": (1, 2)}, "srun says worker 1 of 2"),
        ({"TF_CONFIG": (0, 2), "MPICH": (0, 4)}, "MPICH says worker 0 of 4"),
        ({"TF_CONFIG": (0, 2), "torchrun": (1, 2)}, "torchrun says worker 1 of 2"),
        ({"TF_CONFIG": (0, 2), "horovodrun": (1, 2)}, "horovodrun says worker 1 of 2"),
        ({"srun": (0, 2), "torchrun": (1, 4)}, "srun says that this is worker 0 of 2, but torchrun says worker 1 of 4"),
        ({"Open_MPI": (0, 2), "torchrun": (1, 2)}, "Open MPI says that this is worker 0 of 2"),
        ({"MPICH": (0, 2), "torchrun": (1, 4)}, "unset PMI_RANK and PMI_SIZE, or RANK and WORLD_SIZE"),
        ({"horovodrun": (0, 2), "Open_MPI": (1, 2)}, "horovodrun says that this is worker 0 of 2"),
        ({"MPICH": (0, 2), "Open_MPI": (1, 4)}, "Open MPI says that this is worker 1 of 4, but MPICH says"),
        (
            {"srun": (0, 3), "Open_MPI": (1, 2), "torchrun": (0, 4)},
            "worker 1 of 2, but torchrun says",
        ),
    ],
)
def test_launchers_that_contradict_each_other(places: dict[str, tuple[int, int]], says: str) -> None:
    with pytest.raises(WorldMismatch) as caught:
        world_of(**places)
    assert says in str(caught.value)
    assert (caught.value.code, caught.value.status) == ("DG005", 76)
