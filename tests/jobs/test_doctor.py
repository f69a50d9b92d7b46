"""`distgrad doctor` finds what is really broken, and says the fix; `distgrad env` shows no secret."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from support.launching import BIN, Job, horovod_installed, run

DOCTOR = [BIN / "distgrad", "doctor", "--json"]


def findings(job: Job) -> dict[str, dict[str, str]]:
    """By what was looked at; the exit status says whether there is a problem."""
    found = json.loads(job.out)
    problems = [one for one in found["findings"] if one["status"] == "problem"]
    assert job.status == (1 if problems else 0)
    assert found["well"] is not bool(problems)
    assert all(one["fix"] for one in problems)
    return {one["check"]: one for one in found["findings"]}


def test_the_sums_of_every_engine() -> None:
    found = findings(run(DOCTOR))
    engines = ["MPI", "tf.distribute", *(["Horovod over Gloo", "Horovod over MPI"] if horovod_installed() else [])]
    for engine in engines:
        assert found[f"sums: {engine}"]["status"] == "ok", found
        assert "exact, 2 workers" in found[f"sums: {engine}"]["found"]


def test_engines_that_do_not_work(without: Path) -> None:
    def look() -> dict[str, dict[str, str]]:
        command = [without / "bin" / "python", "-m", "distgrad", "doctor", "--quick", "--json"]
        return findings(run(command, env={"PATH": "/usr/bin:/bin"}))

    site = next(without.glob("lib/python*/site-packages"))
    found = look()
    assert (found["MPI"]["status"], found["MPI"]["found"]) == ("absent", "mpi4py is not installed")
    assert "built without TensorFlow" in found["Horovod"]["found"]
    assert found["Horovod"]["fix"].endswith("launch/install-horovod")

    (site / "mpi4py").symlink_to(next(Path(sys.prefix).glob("lib/python*/site-packages")) / "mpi4py")
    (site / "horovod" / "tensorflow" / "mpi_lib.so").touch()
    (site / "horovod" / "metadata.json").write_text('{"tensorflow": "2.15.0"}')
    found = look()
    assert "mpi4py finds no MPI library" in found["MPI"]["found"]
    assert "pip install 'distgrad[mpi]'" in found["MPI"]["fix"]
    assert "built for TensorFlow 2.15.0, not for" in found["Horovod"]["found"]

    shutil.rmtree(site / "horovod")
    (site / "mpi4py").unlink()
    assert look()["Horovod"]["found"] == "Horovod is not installed"


def test_a_busy_port_and_a_gpu_for_two() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = {"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}}
        found = findings(run([*DOCTOR, "--quick"], env={"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "5"}))
    assert f"port {address[10:]} of {address}" in found["ports"]["found"]
    assert "would share its 1 GPU(s) 5" in found["devices"]["found"]
    assert findings(run([*DOCTOR, "--quick"], env={"TF_CONFIG": json.dumps(config)}))["ports"]["status"] == "ok"


def test_a_world_of_singletons() -> None:
    found = findings(run([*DOCTOR, "--quick"], env={"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}))
    assert found["launcher"]["found"] == "srun started 2 workers but mpi connected 1"
    assert "launch with the mpirun of the MPI" in found["launcher"]["fix"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small /dev/shm takes root")
def test_a_container_as_docker_makes_it() -> None:
    """64 MB of shared memory, and a name that nobody knows."""
    doctor = " ".join(map(str, [*DOCTOR, "--quick"]))
    system = "mount -t tmpfs -o size=64m tmpfs /dev/shm && echo nobody-knows >/proc/sys/kernel/hostname"
    job = run(["unshare", "--mount", "--uts", "sh", "-c", f"{system} && exec {doctor}"])
    if not job.out:
        pytest.skip(job.err)
    found = findings(job)
    assert "/dev/shm has 64 MB" in found["shared memory"]["found"]
    assert "--shm-size=1g" in found["shared memory"]["fix"]
    assert "nobody-knows does not resolve" in found["host name"]["found"]
    assert "/etc/hosts" in found["host name"]["fix"]


def test_what_goes_into_a_bug_report_holds_no_secret() -> None:
    secrets = {"PASSWORD": "hunter2", "HOROVOD_SECRET_KEY": "hunter2", "DISTGRAD_TOKEN": "hunter2"}
    job = run([BIN / "distgrad", "env"], env={**secrets, "DISTGRAD_BACKEND": "mpi"})
    assert job.status == 0
    assert "hunter2" not in job.out
    for text in ("DISTGRAD_BACKEND: mpi\n", "tensorflow: ", "mpirun: ", "/dev/shm has "):
        assert text in job.out
