"""Each file under launch/ does what it says, as a person runs it."""

import os
import re
from pathlib import Path

import pytest

from distgrad.launching.commands import free_addresses
from support.launching import ROOT, finish, needs_horovod, recipe, run, start

WHO = """
import os
names = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK")
rank = next(os.environ[name] for name in names if name in os.environ)
print(f"worker {rank} {os.environ['TF_NUM_INTRAOP_THREADS']}\\n", end="", flush=True)
"""


@pytest.mark.parametrize("command", ["local", "mpirun.sh", pytest.param("horovodrun.sh", marks=needs_horovod)])
def test_two_workers(command: str, tmp_path: Path) -> None:
    script = tmp_path / "who.py"
    script.write_text(WHO)
    words = [recipe(command), "-np", "2", script] if command == "local" else [recipe(command), script]
    job = run(words, env={"HOSTS": "localhost:2"})
    assert job.status == 0, job.err
    assert sorted(job.lines("worker")) == ["worker 0 1", "worker 1 1"]


def test_the_wrapped_model_learns_the_same_on_tensorflow_s_own_workers() -> None:
    addresses = ",".join(free_addresses(2))
    script = recipe("wrap_existing.py")
    workers = [start([recipe("tf_workers"), str(index), addresses, script], {}) for index in (0, 1)]
    root, other = (finish(worker) for worker in workers)
    assert (root.status, other.status) == (0, 0), root.err[-3000:] + other.err[-3000:]
    alone = run(["python", script])
    (one,), (two,) = alone.lines("loss"), root.lines("loss")
    assert (one.endswith("1 workers"), two.endswith("2 workers"), other.out) == (True, True, "")
    assert float(one.split()[1]) == pytest.approx(float(two.split()[1]), rel=1e-4)
    assert run([recipe("tf_workers")]).status == 64


def test_the_transformer_learns_python() -> None:
    job = run([recipe("mpirun.sh"), recipe("train_text.py"), "--steps", "40", "--batch-size", "32"])
    assert job.status == 0, job.err[-3000:]
    losses = [float(loss) for loss in re.findall(r"\| loss (\S+) a letter", job.out)]
    assert losses[-1] < 3.0  # nats a letter; to know nothing is 4.85
    assert "workers 2" in job.out
    assert "def " in job.out


def test_the_autoencoder_draws_digits() -> None:
    job = run([recipe("mpirun.sh"), recipe("vae_digits.py"), "--epochs", "10"])
    assert job.status == 0, job.err[-3000:]
    (last,) = job.lines("loss")
    assert float(last.split()[1]) < 29  # a picture of the mean digit has 33
    assert "on 2 workers" in last
    assert len(job.out.splitlines()) == 2 + 1 + 8  # of epochs, the loss and the pictures


def test_few_weights_learn_to_read_lying_digits() -> None:
    job = run([recipe("mpirun.sh"), recipe("finetune_lora.py"), "--width", "128", "--epochs", "4"])
    assert job.status == 0, job.err[-3000:]
    lines = [line.split(" | ") for line in job.out.splitlines()]
    trained, reached = ([float(re.findall(r"[\d.]+", line[part])[0]) for line in lines] for part in (1, 2))
    upright, before, after = reached
    assert min(upright, after) > before + 0.3
    assert trained[2] * 3 < trained[0]


def test_shell_scripts_say_what_they_are() -> None:
    for path in (ROOT / "launch").rglob("*"):
        if path.is_file() and os.access(path, os.X_OK):
            assert path.read_text().startswith("#!/usr/bin/env bash\n# ")
            assert run(["bash", "-n", path]).status == 0
