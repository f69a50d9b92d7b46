"""TF_CONFIG: the variable that tells a worker of TensorFlow's own who it is, and where all of them listen."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from distgrad.errors import BadEnvironment, reason_of, shown

# TensorFlow takes no address with a slash; an IPv6 one stands in brackets.
ADDRESS = re.compile(r"(?:[\w.-]{1,253}|\[[\w.:%]{2,64}\]):(?P<port>[0-9]{1,5})", re.ASCII)
KIND = re.compile(r"[a-z_]{1,64}")
LAST_PORT = 65_535


class TfTask(NamedTuple):
    """The task that TF_CONFIG describes.

    Attributes:
        rank: its number, the chief's being 0.
        size: how many tasks there are.
        local_rank: its number among those of its host.
        local_size: how many tasks its host has.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


def parse_tf_config(text: str) -> TfTask:
    """Read TF_CONFIG, in a time that is linear in its length.

    Raises:
        BadEnvironment: it is broken, names a task that is no worker, or gives two workers one address.
    """
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = _kind(task["type"]), _index(task["index"])
        # MultiWorkerMirroredStrategy counts the chief first.
        chiefs, workers = _addresses(cluster, "chief"), _addresses(cluster, "worker")
        _require_worker(kind, index)
        address = (chiefs if kind == "chief" else workers)[index]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadEnvironment(
            f"TF_CONFIG is broken ({type(error).__name__}: {reason_of(error)})",
            'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
        ) from None
    return _task([*chiefs, *workers], address, index if kind == "chief" else index + len(chiefs))


def _kind(value: Any) -> str:
    if not isinstance(value, str) or not KIND.fullmatch(value):
        raise TypeError(f"the task's type is {shown(value)}")
    return value


def _index(value: Any) -> int:
    if type(value) is not int:  # True and False are no integers here
        raise TypeError(f"the task's index is {shown(value)}")
    return value


def _addresses(cluster: Any, kind: str) -> list[str]:
    """Return the addresses of a kind of task, none where there are none of it."""
    addresses = cluster.get(kind, [])
    if not isinstance(addresses, list):
        raise TypeError(f"{kind} is {shown(addresses)}")
    for address in addresses:
        found = ADDRESS.fullmatch(address) if isinstance(address, str) else None
        if found is None or int(found["port"]) > LAST_PORT:
            raise TypeError(f"{kind} has the address {shown(address)}")
    if kind == "chief" and len(addresses) > 1:
        raise ValueError(f"there are {len(addresses)} chiefs")
    return addresses


def _require_worker(kind: str, index: int) -> None:
    if kind not in ("chief", "worker") or index < 0:
        raise BadEnvironment(
            f"TF_CONFIG names the task {kind} {shown(index)}",
            "run distgrad on tasks of type chief or worker, from index 0",
        )


def _task(addresses: Sequence[str], address: str, rank: int) -> TfTask:
    """Count the workers of this worker's host by their addresses."""
    duplicate = next((one for one, times in Counter(addresses).items() if times > 1), None)
    if duplicate is not None:
        raise BadEnvironment(f"TF_CONFIG gives two workers the address {duplicate}", "give every worker its own port")
    host = address.rpartition(":")[0]
    same_host = [one for one in addresses if one.rpartition(":")[0] == host]
    return TfTask(rank, len(addresses), same_host.index(address), len(same_host))
