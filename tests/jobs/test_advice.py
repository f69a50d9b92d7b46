"""Advice that takes jobs, environments or launchers of their own."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import distgrad
from support.advice import advised
from support.launching import BIN, ROOT, Job, launch, needs_horovod, program, run
from support.logs import line, written

CONNECT = ["-c", "import sys, distgrad; print('connected', distgrad.connect(*sys.argv[1:]).size, flush=True)"]


def connect(python: Path | str = sys.executable, backend: str = "auto", **env: str) -> Job:
    return run([python, *CONNECT, backend], env=env)


def works(job: Job, workers: int = 1) -> None:
    assert job.status == 0, job.err
    assert job.lines("connected") == [f"connected {workers}"] * workers


def test_a_launcher_of_another_library() -> None:
    advised(
        connect(RANK="0", WORLD_SIZE="2").err,
        "launch with the mpirun of the MPI that mpi4py or Horovod uses, or with horovodrun",
    )
    works(launch("mpi", 2, CONNECT)[0], 2)
    advised(
        connect(DISTGRAD_EXPECT_SIZE="3").err,
        "see that every host starts its workers, or set DISTGRAD_EXPECT_SIZE to the number that there should be",
    )
    works(connect(DISTGRAD_EXPECT_SIZE="1"))


def test_mpi_that_is_missing(without: Path) -> None:
    """In an environment without it; then in this one, in place of installing it there."""
    python, site = without / "bin" / "python", next(without.glob("lib/python*/site-packages"))
    bare = {"PATH": "/usr/bin:/bin"}
    advised(connect(python, "mpi", **bare).err, "pip install 'distgrad[mpi]' installs mpi4py and an MPI for it")
    (site / "mpi4py").symlink_to(next(Path(sys.prefix).glob("lib/python*/site-packages")) / "mpi4py")
    command = ["-m", "distgrad", "run", "--backend", "mpi", "-np", "1"]
    job = run([python, *command, python, *CONNECT], env=bare)
    (site / "mpi4py").unlink()
    advised(job.err, "pip install 'distgrad[mpi]' brings one; on a cluster, load its MPI module")
    works(run([sys.executable, *command, sys.executable, *CONNECT]))


@pytest.mark.alone  # it installs distgrad anew where the others' processes look for it
@pytest.mark.thorough
@needs_horovod
def test_horovod_that_was_built_without_tensorflow(tmp_path: Path) -> None:
    """It is built, or taken from the cache, for an environment that has a Horovod without TensorFlow."""
    venv = tmp_path / "venv"
    env = {"VENV": str(venv)}
    assert run([ROOT / "launch" / "make-venv", "mpi,horovod"], env=env).status == 0
    broken = next(venv.glob("lib/python*/site-packages")) / "horovod"
    (broken / "tensorflow").mkdir(parents=True)
    (broken / "__init__.py").touch()
    job = connect(venv / "bin" / "python", "horovod")
    advised(job.err, "build it for this TensorFlow with launch/install-horovod")
    shutil.rmtree(broken)
    assert run([ROOT / "launch" / "install-horovod"], env=env, timeout=600).status == 0
    works(connect(venv / "bin" / "python", "horovod"))


def test_a_core_of_something_else(tmp_path: Path) -> None:
    """A text in its place, then a library that is none of distgrad's."""
    package = tmp_path / "distgrad"
    shutil.copytree(Path(distgrad.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    core = package / "native" / "core.abi3.so"
    own = core.read_bytes()
    step = """
        import distgrad, keras, numpy as np
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        distgrad.DistributedStep(model, "mse", "sgd", comm=distgrad.connect())(np.ones((1, 2)), np.ones((1, 1)))
        """
    core.write_text("no library")
    advised(run([sys.executable, *program(step)], cwd=tmp_path).err, "install distgrad again, for this TensorFlow")
    shutil.copy(next(Path(np.__file__).parent.rglob("_multiarray_umath*.so")), core)
    job = run([sys.executable, *program(step)], cwd=tmp_path)
    advised(job.err, "install distgrad again with pip, which compiles it")
    core.write_bytes(own)
    assert len(run([sys.executable, *program(step)], cwd=tmp_path).lines("step 1")) == 1


def test_reports(tmp_path: Path) -> None:
    path = written(tmp_path / "log", [line(1)])
    code = "import sys; sys.modules['numpy'] = None; import distgrad.cli; distgrad.cli.main()"
    advised(run([sys.executable, "-c", code, "report", path]).err, "pip install 'distgrad[report]'")
    page = ["--html", tmp_path / "missing" / "page"]
    advised(run([BIN / "distgrad", "report", path, *page]).err, "give another file")
    empty = written(tmp_path / "empty", ["nothing"])
    advised(run([BIN / "distgrad", "report", empty]).err, "give a file that log_file= wrote")
    page = ["--html", tmp_path / "page"]
    assert "steps 1 " in run([BIN / "distgrad", "report", path, *page]).out


def test_an_engine_without_shared_weights() -> None:
    code = """
        import distgrad, keras, numpy as np
        comm = distgrad.connect()
        with comm.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        for wish in ("auto", True):
            step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, shard_update=wish, log_every=0)
            print("applied", step(np.ones((4, 2)), np.ones((4, 1))).applied, flush=True)
        """
    (job,) = launch("mirrored", 2, program(code))
    assert job.lines("applied") == ["applied True"]
    advised(job.err, 'launch it under MPI on CPUs, or leave it at "auto"')
    assert launch("mpi", 2, program(code))[0].lines("applied") == ["applied True"] * 4


def test_tensorflow_that_was_used_before_its_workers_were_connected() -> None:
    cluster = {"cluster": {"worker": ["localhost:0"]}, "task": {"type": "worker", "index": 0}}
    env = {"TF_CONFIG": json.dumps(cluster)}
    late = "import tensorflow as tf; tf.ones(2); import distgrad; distgrad.connect()"
    job = run([sys.executable, "-c", late], env=env)
    advised(job.err, "call distgrad.connect() before any other TensorFlow operation")
    works(connect(**env))


def test_a_job_that_is_told_to_stop(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        import distgrad, keras, numpy as np
        comm = distgrad.connect()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0)
        if len(sys.argv) > 1:
            print("begins at", distgrad.Checkpoint(sys.argv[1], comm).resume(step), flush=True)
        for number in range(step.steps, 6):
            if number == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            step(np.ones((4, 2)), np.ones((4, 1)))
        """
    trains = [sys.executable, *program(code)]
    advised(run(trains).err, "give it one, and begin again")
    advised(run([*trains, tmp_path]).err, "launch it again to go on from there")
    again = run([*trains, tmp_path])
    assert (again.status, again.out) == (0, "begins at 5\n")


@pytest.mark.thorough
def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        import distgrad, keras, numpy as np
        comm = distgrad.connect()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm)
        checkpoint = distgrad.Checkpoint(sys.argv[1], comm)
        print("begins at", checkpoint.resume(step), flush=True)
        for number in range(step.steps, 6):
            if number == 3 and comm.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            step(np.ones((4, 2)), np.ones((4, 1)))
            if number == 1:
                checkpoint.save(step)
                checkpoint.wait()
        """
    trains = program(code)
    advised(launch("mpi", 2, [*trains, tmp_path])[0].err, "start the job again, from its last checkpoint")
    trains[1] = trains[1].replace("number == 3", "False")
    again = launch("mpi", 2, [*trains, tmp_path])[0]
    assert again.status == 0, again.err
    assert again.lines("begins at") == ["begins at 2"] * 2


# ---- workers that do not meet

MEETING = """
    import os, signal, subprocess, sys, time
    import distgrad, keras, numpy as np
    wrong = sys.argv[1]
    if wrong == "late" and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        time.sleep(15)
    comm = distgrad.connect()
    odd = comm.rank == 1
    if odd and wrong == "stopped":
        # Stands still for 6 seconds, which only somebody else can end.
        subprocess.Popen(["sh", "-c", f"sleep 6; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    model = distgrad.distribute(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), comm)
    model.compile("sgd", "mse")
    data = np.ones((8, 2)), np.ones((8, 1))
    model.evaluate(*data, verbose=0) if odd and wrong == "call" else model.fit(*data, verbose=0)
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0)
    for _ in range(2 if odd and wrong == "fewer" else 3):
        step(*data)
    print("done", flush=True)
"""


@pytest.mark.thorough
def test_workers_that_do_not_meet(tmp_path: Path) -> None:
    script = tmp_path / "meet.py"
    script.write_text(textwrap.dedent(MEETING))

    def meet(wrong: str, *words: str) -> Job:
        return run([BIN / "distgrad", "run", "-np", "2", "--backend", "mpi", *words, script, wrong])

    def met(job: Job) -> None:
        assert job.status == 0, job.err
        assert job.lines("done") == ["done"] * 2

    advised(meet("stopped", "--timeout", "3").err, "see what it does there; connect(timeout=...) waits longer")
    said = advised(meet("call").err, "call {} on every worker; keras.Model.predict asks no other worker")
    assert said in (("evaluate()",), ("fit()",))  # all call fit() in what works below
    advised(meet("fewer").err, "take the same steps on every worker")
    advice = "see what keeps it from distgrad.connect(), or give it longer with --start-timeout"
    advised(meet("late", "--start-timeout", "8").err, advice)
    met(meet("late", "--start-timeout", "60"))
    met(meet("stopped", "--timeout", "60"))
