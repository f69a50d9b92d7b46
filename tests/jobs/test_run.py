"""`distgrad run`: every launcher alike, what is wrong said before anything starts, and nothing left of a job."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.advice import advised
from support.launching import BIN, CLEAN, PATIENCE, Job, finish, needs_horovod, program, run, start
from support.lines import ERROR
from support.processes import wait_until, with_environment

DISTGRAD = BIN / "distgrad"
BACKENDS = {
    "mpi": ["--backend", "mpi"],
    "gloo": ["--backend", "horovod", "--controller", "gloo"],
    "horovod-mpi": ["--backend", "horovod", "--controller", "mpi"],
    "tf": ["--backend", "tf"],
}
EVERYONE = ["mpi", pytest.param("gloo", marks=needs_horovod), pytest.param("horovod-mpi", marks=needs_horovod), "tf"]
RANK = """
    import json, os, sys, time, signal
    names = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
    rank = next((int(os.environ[name]) for name in names if name in os.environ), None)
    if rank is None:
        rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
"""


def script(folder: Path, body: str) -> Path:
    """A script whose workers know their rank, without any engine."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(RANK) + textwrap.dedent(body))
    return path


def distgrad(*words: object, timeout: float = PATIENCE, **env: str) -> Job:
    return run([DISTGRAD, "run", *map(str, words)], timeout=timeout, env=env)


def refused(job: Job, status: int, code: str, *says: str) -> None:
    assert job.status == status, job.err
    assert job.seconds < 1.5  # said at once; the machine may be busy
    (line,) = ERROR.findall(job.err)
    for text in (f"error[{code}]", *says):
        assert text in line
    assert job.out == ""


@pytest.mark.fault(24, 25)
def test_what_cannot_be_launched_is_said_at_once(tmp_path: Path) -> None:
    here = script(tmp_path, "")
    refused(distgrad("--backend", "hovorod", here), 64, "DG001", "did you mean 'horovod'?")
    refused(distgrad("-np", 999, here), 64, "DG002", "999 workers do not fit", "--oversubscribe")
    refused(distgrad("-np", 3, "-H", "localhost:2", here), 64, "DG002", "-H localhost:3")
    refused(distgrad("-H", "h1:x", here), 64, "DG002", "'h1:x'")
    refused(distgrad("-np", 1, "-H", "-oProxyCommand=touch${IFS}x", here), 64, "DG002", "'-oProxyCommand=touch${IFS}x'")
    refused(distgrad("-np", 1, "-H", "h1,\x1b[31m\nh2:1", here), 64, "DG002", r"'\x1b[31m\nh2:1'")
    refused(distgrad("-H", "", here), 64, "DG002", "'' is no host")
    refused(distgrad("nowhere.py"), 64, "DG002", "there is no file nowhere.py")
    refused(distgrad("-m", "nowhere.train"), 64, "DG002", "there is no module nowhere.train")
    refused(distgrad("-np", 2, "--expect-size", 4, here), 76, "DG005", "4 are expected")
    refused(distgrad("--backend", "tf", "-H", "h1,h2", here), 64, "DG002", "launch/clusters/tf_workers")
    assert distgrad("-np", "many", here).status == 64


@pytest.mark.parametrize("verbose", [False, True])
def test_greetings_and_explanations_are_kept_back(tmp_path: Path, verbose: bool) -> None:
    """What is left of a failure is the worker's traceback, and one line."""
    body = """
        import tensorflow
        if rank == 1:
            raise ValueError("bad sample")
        time.sleep(300)
    """
    job = distgrad(
        "-np",
        2,
        "--backend",
        "mpi",
        *(["--verbose"] if verbose else []),
        script(tmp_path, body),
        TF_CPP_MIN_LOG_LEVEL="0",
    )
    assert job.status == 1
    assert ("Primary job" in job.err) == ("oneDNN custom operations" in job.err) == verbose
    assert job.err.count("distgrad: error[") == 1
    if not verbose:
        said = [line for line in job.err.splitlines() if not line.startswith("  ")]
        assert said[:2] == ["Traceback (most recent call last):", "ValueError: bad sample"]
        assert said[2].startswith("distgrad: error[DG063] rank=1")
        assert all(
            line.startswith("[1] ") for line in map(str.strip, job.err.partition(said[2])[2].splitlines()) if line
        )


def test_without_a_command_it_shows_where_to_begin() -> None:
    job = run([sys.executable, "-m", "distgrad"])
    assert job.status == 0
    assert [line.split()[1] for line in job.out.splitlines()] == ["run", "doctor", "report", "--help"]
    for command in ("run", "doctor", "report"):
        assert run([DISTGRAD, command, "--help"]).status == 0


def test_a_module_is_run_as_python_does(tmp_path: Path) -> None:
    """From the working directory, with its arguments, in each worker."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "train.py").write_text("import sys; print(f'{__package__} {__name__} {sys.argv[1:]}\\n', end='')")
    command = [DISTGRAD, "run", "-np", "2", "--backend", "mpi", "-m", "package.train", "--epochs", "3"]
    job = finish(start(command, {}, cwd=tmp_path))
    assert job.status == 0, job.err
    assert job.lines("package") == ["package __main__ ['--epochs', '3']"] * 2
    shown = finish(start([*command[:2], "--dry-run", *command[2:]], {}, cwd=tmp_path))
    assert shown.out.rstrip().endswith("-m package.train --epochs 3")


@pytest.mark.fault(22, 25)
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG is broken"),
        ({"RANK": "9", "WORLD_SIZE": "4"}, "RANK=9 does not fit WORLD_SIZE=4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK='x' is no integer"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, "torchrun has launched this already"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "would share its 1 GPU(s) 3"),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, "names GPU 0 twice"),
    ],
)
def test_a_broken_environment_is_named(tmp_path: Path, env: dict[str, str], says: str) -> None:
    refused(distgrad("-np", 2, script(tmp_path, ""), **env), 78, "DG004", says)


@pytest.mark.fault(23)
def test_what_is_missing_is_named_with_the_command_that_brings_it(without: Path, tmp_path: Path) -> None:
    def here(*words: object) -> Job:
        command = [without / "bin" / "python", "-m", "distgrad", "run", *words, script(tmp_path, "")]
        return run([str(word) for word in command], env={"PATH": "/usr/bin:/bin"})

    refused(here("--backend", "mpi"), 69, "DG003", "mpi4py is not installed", "pip install 'distgrad[mpi]'")
    refused(here("--backend", "horovod"), 69, "DG003", "without TensorFlow", "launch/install-horovod")
    package = next(without.glob("lib/python*/site-packages")) / "mpi4py"
    package.symlink_to(next(Path(sys.prefix).glob("lib/python*/site-packages")) / "mpi4py")
    refused(here("--backend", "mpi"), 69, "DG003", "mpirun is not on PATH", "pip install 'distgrad[mpi]'")
    package.unlink()


@pytest.mark.fault(35)
@pytest.mark.parametrize("backend", EVERYONE)
def test_every_launcher_passes_on_output_environment_and_status(backend: str, tmp_path: Path) -> None:
    """The status of a worker that fails; its last words; and no value of a variable in any command line."""
    body = """
        from pathlib import Path
        lines = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        secret = os.environ["PASSWORD"]
        print(f"worker {rank} knows", secret, "shown" if secret.encode() in lines else "hidden")
        print(f"line of {rank}", end="", flush=True)
        if rank == 1:
            print("disk is full", file=sys.stderr, flush=True)
            time.sleep(1)
            Path(__file__).with_suffix(".failed").touch()
            sys.exit(3)
        time.sleep(300)
    """
    job = distgrad("-np", 2, "--tag-output", *BACKENDS[backend], script(tmp_path, body), PASSWORD="v3ry s3cret")
    assert job.status == 3, job.err
    assert time.time() - (tmp_path / "script.failed").stat().st_mtime < 20
    for rank in (0, 1):
        assert f"[{rank}] worker {rank} knows v3ry s3cret hidden\n" in job.out
        assert f"[{rank}] line of {rank}" in job.out
    (line,) = ERROR.findall(job.err)
    assert "error[DG063] rank=1" in line
    assert "ended with status 3" in line
    advised(line, "its own output says why")
    assert job.err.partition(line)[2].strip() == "[1] disk is full"


@pytest.mark.parametrize("backend", ["mpi", pytest.param("gloo", marks=needs_horovod), "tf"])
def test_a_killed_worker_is_named_and_the_job_goes_on_from_its_checkpoint(backend: str, tmp_path: Path) -> None:
    body = f"""
        from pathlib import Path
        checkpoint = Path({str(tmp_path)!r}, f"{{rank}}.checkpoint")
        again = checkpoint.exists()
        checkpoint.touch()
        time.sleep(0.5)
        if rank == 1 and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0 if again else 30)
        print("again" if again else "never", flush=True)
    """
    job = distgrad("-np", 2, "--max-restarts", 2, *BACKENDS[backend], script(tmp_path, body))
    assert job.status == 0, job.err
    (line,) = ERROR.findall(job.err)
    assert "error[DG060] rank=1" in line
    assert "killed by signal 9 (SIGKILL, possibly out of memory)" in line
    advised(line, "launch it again to go on from the last checkpoint; --max-restarts does so by itself")
    assert job.err.count("distgrad: warning: restart 1 of 2, with 2 workers") == 1
    assert job.lines("").count("again") == 2
    assert "never" not in job.out


GLOO = pytest.param("gloo", 15, marks=[needs_horovod, pytest.mark.thorough])  # horovodrun loads TensorFlow first


@pytest.mark.fault(11)
@pytest.mark.parametrize(("backend", "patience"), [("mpi", 2), ("tf", 2), GLOO])
def test_a_worker_that_does_not_come_is_named(backend: str, patience: int, tmp_path: Path) -> None:
    body = """
        import distgrad
        time.sleep(60 if rank == 2 else 0)
        distgrad.connect()
        print("trained", flush=True)
    """
    options = ["-np", 4, "--oversubscribe", "--start-timeout", patience, *BACKENDS[backend]]
    job = distgrad(*options, script(tmp_path, body))
    assert job.status == 75, job.err
    assert job.seconds < 2 * patience + 6  # for the first one, and for the last one after that
    (line,) = ERROR.findall(job.err)
    assert "error[DG061] rank=2" in line
    assert "have 3 of 4, missing 2" in line
    assert "trained" not in job.out


def test_workers_of_which_one_halts_while_they_join_are_ended(tmp_path: Path) -> None:
    body = """
        class Halt:
            def find_spec(self, name, *_):
                if rank == 1 and name == "mpi4py.MPI":
                    os.kill(os.getpid(), signal.SIGSTOP)

        sys.meta_path.insert(0, Halt())
        import distgrad
        distgrad.connect()
        print("trained", flush=True)
    """
    job = distgrad("-np", 2, "--start-timeout", 3, "--backend", "mpi", script(tmp_path, body))
    assert job.status == 75, job.err
    (line,) = ERROR.findall(job.err)
    assert "error[DG061]" in line
    assert "have 0 of 2, missing 0, 1, after 3 s" in line
    assert "trained" not in job.out


def test_a_worker_that_leaves_the_others_waiting_is_no_success(tmp_path: Path) -> None:
    body = """
        from mpi4py import MPI
        if rank == 1:
            time.sleep(1)
            os._exit(0)
        MPI.COMM_WORLD.Barrier()
    """
    job = distgrad("-np", 2, script(tmp_path, body))
    assert job.status == 75, job.err
    assert "worker 1" in job.err
    assert "ended with status 0 before the others" in job.err


STOPPING = """
    def stop(number, frame):
        os.write(1, f"worker {rank} saves after {signal.Signals(number).name}\\n".encode())
        time.sleep(0.5)
        os._exit(85)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop if %(saves)s else signal.SIG_IGN)
    os.write(1, f"worker {rank} ready\\n".encode())  # a print cannot be interrupted by a handler that prints
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_worker_once(number: signal.Signals, tmp_path: Path) -> None:
    job = started("mpi", script(tmp_path, STOPPING % {"saves": True}))
    job.send_signal(number)
    ended = finish(job, 20)
    assert ended.status == 85, ended.err
    assert sorted(ended.lines("worker")) == [f"worker {rank} saves after {number.name}" for rank in (0, 1)]


@pytest.mark.parametrize("backend", ["tf", pytest.param("gloo", marks=needs_horovod)])
def test_and_under_other_launchers(backend: str, tmp_path: Path) -> None:
    job = started(backend, script(tmp_path, STOPPING % {"saves": True}))
    job.terminate()
    ended = finish(job, 20)
    assert ended.status == 85, ended.err
    assert sorted(ended.lines("worker")) == [f"worker {rank} saves after SIGTERM" for rank in (0, 1)]


def test_the_second_ctrl_c_ends_what_does_not_listen(tmp_path: Path) -> None:
    job = started("mpi", script(tmp_path, STOPPING % {"saves": False}))
    job.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    ended = finish(job, 10)
    assert ended.status == 128 + signal.SIGINT
    assert ended.seconds < 4


def test_a_signal_reaches_no_process_that_has_a_worker_s_number_by_now(tmp_path: Path) -> None:
    """A number that was a wrapper's and is not one of the job's processes any more."""
    with subprocess.Popen(["sleep", "60"]) as other:
        body = f"""
            from pathlib import Path
            Path(os.environ["DISTGRAD_JOB"], f"{{rank}}.started").write_text("{other.pid}")
        """
        path = script(tmp_path, textwrap.dedent(body) + textwrap.dedent(STOPPING % {"saves": False}))
        job = started("mpi", path)
        for _ in range(2):  # the second one ends the job
            job.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert finish(job, 20).status == 128 + signal.SIGINT
        assert other.poll() is None
        other.kill()


def test_a_process_whose_parent_ended_before_it_could_ask_for_a_signal_ends() -> None:
    code = """
        import os, time
        from distgrad.launching import worker_wrapper
        parent = os.getpid()
        if not os.fork():
            while os.getppid() == parent:
                time.sleep(0.01)
            print("asks", flush=True)
            worker_wrapper.die_with(parent)
            print("alive")
    """
    ended = run([sys.executable, *program(code)])
    assert ended.status == 0, ended.err
    assert (ended.out, ended.err) == ("asks\n", "")  # it was killed without a word


@pytest.mark.parametrize("backend", ["mpi", pytest.param("gloo", marks=needs_horovod), "tf"])
def test_killed_outright_it_leaves_nothing(backend: str, tmp_path: Path) -> None:
    mark = {"RUN_TEST_MARK": str(tmp_path)}
    job = started(backend, script(tmp_path, STOPPING % {"saves": False}), mark)
    job.kill()
    job.communicate()
    wait_until(lambda: not with_environment(mark), 10)


def started(backend: str, path: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A job of two workers, both of which have said that they are ready."""
    job = start([DISTGRAD, "run", "-np", "2", *BACKENDS[backend], path], env or {})
    assert job.stdout is not None
    lines = [job.stdout.readline() for _ in range(2)]
    assert sorted(lines) == [f"worker {rank} ready\n" for rank in (0, 1)]
    return job


def test_the_command_that_is_printed_does_the_same(tmp_path: Path) -> None:
    body = """
        words = " ".join([os.environ["TF_NUM_INTRAOP_THREADS"], *sys.argv[1:]])
        print(f"worker {rank} {words}\\n", end="", flush=True)
    """
    path = script(tmp_path, body)
    for words in (["-np", 2], ["--nproc-per-node", 2], ["-n", 2, "-H", "localhost:2"], ["-np", 2, "--backend", "tf"]):
        printed = distgrad(*words, "--dry-run", path, "--epochs", "3 4")
        assert printed.status == 0, printed.err
        assert not re.search("worker_wrapper|PASSWORD", printed.out)
        by_hand = run(["sh", "-c", printed.out.strip() + "\nwait"])
        itself = distgrad(*words, path, "--epochs", "3 4")
        assert (
            sorted(itself.lines("worker"))
            == sorted(by_hand.lines("worker"))
            == sorted(f"worker {rank} {CLEAN['TF_NUM_INTRAOP_THREADS']} --epochs 3 4" for rank in (0, 1))
        )


def test_cores_are_shared_out(tmp_path: Path) -> None:
    environment = {name: value for name, value in CLEAN.items() if name != "TF_NUM_INTRAOP_THREADS"}
    path = script(tmp_path, 'print("worker", os.environ["TF_NUM_INTRAOP_THREADS"], len(os.sched_getaffinity(0)))')
    job = run(
        ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), DISTGRAD, "run", "-np", "1", path]
    )
    cores = len(os.sched_getaffinity(0))
    assert job.lines("worker") == [f"worker {cores} {cores}"]


SMALL = """
    import distgrad, tensorflow as tf
    comm = distgrad.connect()
    own = tf.range(2_000_000, dtype=tf.float32)
    total = comm.sum_over_workers(lambda: own * (comm.rank + 1), ())
    assert bool(tf.reduce_all(total == own * sum(range(comm.size + 1))))
    print("sum right", flush=True)
    comm.close()
"""


@pytest.mark.fault(26)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small /dev/shm takes root")
def test_little_shared_memory(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size=256k tmpfs /dev/shm"
    command = f"{mount} && exec {DISTGRAD} run -np 2 {script(tmp_path, SMALL)}"
    job = run(["unshare", "--mount", "sh", "-c", command])
    if "unshare failed" in job.err or "mount:" in job.err:
        pytest.skip(job.err)
    assert job.status == 0, job.err[-3000:]
    assert job.out.count("sum right") == 2
