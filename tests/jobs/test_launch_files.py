"""Each file under launch/ does what it says, as a person runs it."""

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

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
    root, other = (finish(worker, 120) for worker in workers)
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


def test_the_mpi_job_has_the_fields_of_the_published_schema() -> None:
    """mpijob_fields.json: MPIJob v2beta1 and the parts of the Kubernetes API that stand in it."""
    schema = json.loads((Path(__file__).with_name("mpijob_fields.json")).read_text())
    job, policy = yaml.safe_load_all((recipe("mpijob.yaml")).read_text())
    assert list(wrong_fields(schema, "Job", job, "")) == []
    broken = {**job, "spec": {**job["spec"], "slots": 1, "slotsPerWorker": "1", "mpiImplementation": "LAM"}}
    assert len(list(wrong_fields(schema, "Job", broken, ""))) == 3
    assert policy["kind"] == "NetworkPolicy"
    for replica in job["spec"]["mpiReplicaSpecs"].values():
        pod = replica["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in pod["containers"])


def wrong_fields(schema: dict[str, Any], kind: str, value: Any, path: str) -> Any:
    """Where a value is not of a kind: a name of the schema, a list of one, a plain type, or one of some words."""
    plain = {"string": str, "integer": int, "boolean": bool, "any": object}
    if kind.startswith("["):
        for index, one in enumerate(value):
            yield from wrong_fields(schema, kind[1:-1], one, f"{path}[{index}]")
    elif kind in schema:
        for name, one in value.items():
            if name in schema[kind]:
                yield from wrong_fields(schema, schema[kind][name], one, f"{path}.{name}")
            else:
                yield f"{path}.{name} is unknown"
    elif not (isinstance(value, plain[kind]) if kind in plain else value in kind.split("|")):
        yield f"{path} is {value!r}, not {kind}"


def test_shell_scripts_say_what_they_are() -> None:
    for path in (ROOT / "launch").rglob("*"):
        if path.is_file() and os.access(path, os.X_OK):
            assert path.read_text().startswith("#!/usr/bin/env bash\n# ")
            assert run(["bash", "-n", path]).status == 0


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_images_install_what_the_project_asks_for(kind: str) -> None:
    """Each package once, with an exact version that pyproject.toml allows, and checksums."""
    locked = (ROOT / "docker" / f"requirements-{kind}.txt").read_text()
    versions = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+) \\$", locked, re.MULTILINE))
    assert locked.count("--hash=sha256:") >= len(versions) == len(re.findall(r"^\S", locked, re.MULTILINE))
    extras = ["", "mpi", "horovod", "examples", *(["gpu"] if kind == "gpu" else [])]
    for requirement in map(Requirement, metadata.requires("distgrad") or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            assert versions[requirement.name] in requirement.specifier, requirement
