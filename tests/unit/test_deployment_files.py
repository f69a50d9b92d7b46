"""Files for clusters and containers, as far as they can be read: the MPIJob, and the packages of the images."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from support.launching import ROOT, recipe


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
