"""Bad input in real processes: one line that names the culprit, the right exit status, nothing applied."""

import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from support.launching import Job, launch, program, run
from support.lines import ERROR
from support.marks import first_as_a_rule
from support.processes import left_in_shared_memory, wait_until, with_environment

CONNECT = "import distgrad; distgrad.connect({!r})"


def connect(backend: str = "auto", **env: str) -> Job:
    return run([sys.executable, "-c", CONNECT.format(backend)], env=env)


def expect(job: Job, status: int, code: str, *says: str) -> None:
    """Exactly one error line, with all that it should say, and nothing on stdout."""
    assert job.status == status, job.err
    lines = ERROR.findall(job.err)
    assert len(lines) == 1, job.err
    for text in (f"error[{code}]", *says):
        assert text in lines[0]
    assert job.out == ""


@pytest.mark.fault(24)
def test_an_unknown_backend_is_met_with_the_nearest_name() -> None:
    expect(connect("hovorod"), 64, "DG001", "'hovorod'", "did you mean 'horovod'?")
    expect(connect(DISTGRAD_BACKEND="MPII"), 64, "DG001", "did you mean 'mpi'?")
    expect(connect("zzz"), 64, "DG001", "choose one of them")


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG is broken"),
        ({"RANK": "9", "WORLD_SIZE": "4"}, "RANK=9 does not fit WORLD_SIZE=4"),
        ({"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK='x' is no integer"),
    ],
)
def test_a_broken_environment_names_the_variable(env: dict[str, str], says: str) -> None:
    expect(connect(**env), 78, "DG004", says)


def test_what_needs_no_engine_is_said_before_tensorflow_is_loaded() -> None:
    code = """
        import os, sys, distgrad
        for backend, env in (("hovorod", {}), ("auto", {"TF_CONFIG": "{"}), ("auto", {"RANK": "9", "WORLD_SIZE": "4"})):
            os.environ.update(env)
            try:
                distgrad.connect(backend)
            except distgrad.DistgradError as error:
                print(error.status, "tensorflow" in sys.modules)
    """
    job = run([sys.executable, "-c", textwrap.dedent(code)])
    assert job.out.split("\n")[:3] == ["64 False", "78 False", "78 False"]


@pytest.mark.fault(12)
def test_a_world_of_one_where_the_launcher_says_two() -> None:
    """What `srun` without PMIx and torchrun do: every process would train alone as rank 0 of 1."""
    job = connect(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_LOCALID="0")
    expect(job, 76, "DG005", "rank=1", "srun started 2", "connected 1")
    expect(connect(RANK="0", WORLD_SIZE="2"), 76, "DG005", "torchrun started 2 workers", "solo connected 1")
    expect(connect(DISTGRAD_EXPECT_SIZE="3"), 76, "DG005", "3 workers are expected but solo connected 1")
    expect(connect(DISTGRAD_TIMEOUT="soon"), 78, "DG004", "DISTGRAD_TIMEOUT='soon' is no number")


@pytest.mark.fault(49)
def test_launchers_that_contradict_each_other() -> None:
    """No process takes itself for the only one, or for a worker that there is already."""
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    task = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
    expect(connect(**task, **torchrun), 76, "DG005", "rank=0", "torchrun started 2 workers but solo connected 1")
    two = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    expect(connect(**two, **torchrun), 76, "DG005", "srun says that this is worker 1 of 2, but torchrun says worker 0")
    alone = {"TF_CONFIG": '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}'}
    trains = program("import distgrad; print('alone of', distgrad.connect().size, flush=True)")
    job = launch("mpi", 2, trains, env=alone)[0]
    assert job.status == 76, job.err
    assert "error[DG005] rank=- step=-: TF_CONFIG says that this is worker 0 of 1, but Open MPI says worker" in job.err
    assert "unset TF_CONFIG" in job.err
    assert job.lines("alone") == []


@pytest.mark.fault(23)
def test_missing_engines_are_named_with_the_command_that_installs_them(without: Path) -> None:
    python = without / "bin" / "python"
    job = run([python, "-c", CONNECT.format("mpi")])
    expect(job, 69, "DG003", "mpi4py is not installed", "pip install 'distgrad[mpi]'")
    job = run([python, "-c", CONNECT.format("horovod")])
    expect(job, 69, "DG003", "Horovod was built without TensorFlow", "launch/install-horovod")


def test_mpi4py_without_an_mpi_library(without: Path) -> None:
    name = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    package = without / name / "mpi4py"
    package.symlink_to(Path(sys.prefix, name, "mpi4py"))
    try:
        job = run([without / "bin" / "python", "-c", CONNECT.format("mpi")], env={"PATH": "/usr/bin:/bin"})
    finally:
        package.unlink()
    expect(job, 69, "DG003", "mpi4py does not load", "pip install 'distgrad[mpi]'")


WORKER = """
    import distgrad, keras, numpy as np
    comm = distgrad.connect()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense({units}, name="out")], name="model")
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm)
    if {raises}:
        raise ValueError("bad sample in file 7")
    try:
        step(np.ones(({rows}, 3), "float32"), np.ones(({rows}, 2), "float32"))
    finally:
        print("weights unchanged " + str(bool(np.all(model.get_weights()[1] == 0))), flush=True)
"""


def work(engine: str, **fields: object) -> Job:
    code = WORKER.format(**({"units": 2, "rows": 4, "raises": False} | fields))
    return launch(engine, 2, program(code))[0]


def expect_of_workers(job: Job, engine: str, status: int, code: str, *says: str) -> None:
    # horovodrun turns every failure into status 1, and repeats the workers' stderr among lines of its own.
    assert job.status == (1 if engine.startswith("horovod") else status), job.err
    lines = [line for line in job.err.splitlines() if "distgrad: error" in line]
    assert len(lines) == 1, job.err
    for text in (f"error[{code}]", *says):
        assert text in lines[0]
    assert job.err.count("Traceback") == job.err.count('bin/horovodrun", line')  # its own, on any failure
    assert job.lines("step 1") == []
    assert job.out.count("weights unchanged True") == 2  # the workers' lines may run into each other


@pytest.mark.fault(13, 14)
@first_as_a_rule("mpi", "horovod-gloo")
def test_models_that_differ(engine: str) -> None:
    job = work(engine, units="2 + comm.rank")
    says = "variable 0 is 'model/out/kernel float32 (3, 3)' on rank 1 but 'model/out/kernel float32 (3, 2)' on rank 0"
    expect_of_workers(job, engine, 65, "DG020", "rank=1 step=0", says)


@pytest.mark.fault(20)
@first_as_a_rule("mpi", "horovod-gloo")
def test_no_rows_anywhere(engine: str) -> None:
    expect_of_workers(work(engine, rows=0), engine, 65, "DG034", "rank=- step=1", "no samples on any worker")


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback_once() -> None:
    job = work("mpi", raises="comm.rank == 1")
    assert job.status == 70
    assert job.err.count("ValueError: bad sample in file 7") == 1
    assert job.lines("step") == []


def test_an_exception_on_all_ranks_leaves_nothing_behind() -> None:
    before, mark = left_in_shared_memory(), {"DISTGRAD_TEST_ERRORS": uuid.uuid4().hex}
    code = "import distgrad; comm = distgrad.connect(); comm.barrier(); 1 / 0"
    assert launch("mpi", 2, program(code), env=mark)[0].status == 70
    wait_until(lambda: left_in_shared_memory() <= before and not with_environment(mark), 20)
