"""The metadata of a checkpoint, checked in one place: its fields, and that they describe the arrays beside them.

A checksum that holds says that a file is as it was written, not who wrote it. So nothing is used before it is known to
be what `training_state.capture` makes: a wrong state of a random generator, say, would be read beyond its end.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgrad.checkpoint.file import CheckpointContent, Hostile
from distgrad.errors import shown

DESCRIPTION = re.compile(r"(?P<path>.*) (?P<dtype>\w+) (?P<shape>\([\d, ]*\))", re.DOTALL)  # see agreement.describe
BOUND = 1 << 63  # of integers
MOST_DIMENSIONS = 32  # of a layer's state
# The random numbers of a worker, and the bit generators that NumPy's may come from, with the end of their buffers.
RANDOM_FIELDS = {"own", "python", "numpy", "keras", "data"}
BIT_GENERATORS = {"MT19937": 624, "PCG64": 0, "PCG64DXSM": 0, "SFC64": 0, "Philox": 4}


class TrainingState(NamedTuple):
    """The description of a training at one moment, as JSON can say it. Its fields are the keys of a file's meta.json.

    The values of variables and metrics are arrays beside it, see `CheckpointContent`.

    Attributes:
        step: number of steps taken.
        workers, versions: for people who read the file; nothing depends on them.
        position: the data cursor's fields.
        fit: the progress of a call of `fit`; None in a loop of the user's own.
        variables, metrics: path, dtype and shape of each, in the order of their arrays.
        random: by rank, the states of the worker's random numbers, and as "data" the seeds of its data's shuffling.
    """

    step: int
    workers: int
    versions: Mapping[str, str]
    position: Mapping[str, int]
    fit: Mapping[str, Any] | None
    variables: Sequence[str]
    metrics: Sequence[str]
    random: Sequence[Mapping[str, Any] | None]


def array_name(kind: str, index: int, description: str) -> str:
    """Return the name of a variable's array, which is unique.

    Args:
        kind: "variables" or "metrics".
        index: the variable's place among those of its kind.
        description: its path, dtype and shape, see `agreement.describe`.
    """
    return f"{kind}/{index:05d}/{_fields_of(description)['path']}"


def require_state(content: CheckpointContent) -> None:
    """Check that the metadata are those of a training, and that the arrays are those that they describe.

    Raises:
        Hostile: they are not; the text names the field.
    """
    meta: Any = content.meta
    _require(isinstance(meta, dict) and set(meta) == set(TrainingState._fields), "meta.json", meta)
    state = TrainingState(**meta)
    _require(_is_count(state.step), "step", state.step)
    _require(_is_count(state.workers) and state.workers > 0, "workers", state.workers)
    is_of_texts = isinstance(state.versions, dict) and all(isinstance(v, str) for v in state.versions.values())
    _require(is_of_texts, "versions", state.versions)
    _require_position(state.position, state.step)
    _require_fit(state.fit, state.step)
    _require_arrays(state, content.arrays)
    _require_random(state)


def _require(holds: bool, name: str, value: object) -> None:
    if not holds:
        raise Hostile(f"its checksum holds, but {name} is {shown(value)}, which distgrad never writes")


def _is_integer(value: object) -> bool:
    return type(value) is int and -BOUND <= value < BOUND  # True and False are no integers here


def _is_count(value: object, most: int = BOUND - 1) -> bool:
    return type(value) is int and 0 <= value <= most


def _are_integers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


def _require_position(position: Any, step: int) -> None:
    """No batch is done, and no pass or epoch comes to an end, without a step."""
    known = isinstance(position, dict) and set(position) == {"epochs", "passes", "taken"}
    _require(known and all(_is_count(value, step) for value in position.values()), "position", position)


def _require_fit(fit: Any, step: int) -> None:
    if fit is None:
        return
    _require(isinstance(fit, dict) and set(fit) == {"epoch", "batch", "logs", "over", "order"}, "fit", fit)
    _require(_is_count(fit["epoch"]), "fit's epoch", fit["epoch"])
    _require(_is_count(fit["batch"], step), "fit's batch", fit["batch"])
    logs = fit["logs"]
    are_numbers = isinstance(logs, dict) and all(isinstance(v, float) or _is_integer(v) for v in logs.values())
    _require(are_numbers, "fit's logs", logs)
    _require(isinstance(fit["over"], bool), "fit's over", fit["over"])
    _require(_are_integers(fit["order"]), "fit's order", fit["order"])
    _require(all(_is_count(value) for value in fit["order"][-1:]), "fit's order", fit["order"])  # of draws, a number


# ---- arrays


def _require_arrays(state: TrainingState, arrays: Mapping[str, np.ndarray]) -> None:
    """Every described variable has its array, and there are no others."""
    expected = set[str]()
    for kind, described in (("variables", state.variables), ("metrics", state.metrics)):
        _require(isinstance(described, list), kind, described)
        for index, description in enumerate(described):
            expected.add(_require_array(kind, index, description, arrays))
    _require(bool(state.variables), "variables", state.variables)
    extra = next((name for name in arrays if name not in expected), None)
    _require(extra is None, "an array without a variable", extra)


def _require_array(kind: str, index: int, description: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the name of a variable's array, which has the dtype and shape that are described."""
    described = _fields_of(description)
    name = array_name(kind, index, description)
    array = arrays.get(name)
    if array is None:
        raise Hostile(f"its checksum holds, but the array {shown(name)} is missing")
    if array.dtype != _stored_dtype(described["dtype"]) or str(array.shape) != described["shape"]:
        is_now = f"{array.dtype.str} {array.shape}"
        raise Hostile(f"its checksum holds, but the array of {shown(description)} is one of {shown(is_now)}")
    return name


def _fields_of(description: Any) -> Mapping[str, str]:
    """Return path, dtype and shape of a described variable.

    Raises:
        Hostile: it is no description.
    """
    found = DESCRIPTION.fullmatch(description) if isinstance(description, str) else None
    if found is None:
        raise Hostile(f"its checksum holds, but {shown(description)} describes no variable")
    return found.groupdict()


def _stored_dtype(name: str) -> np.dtype | None:
    """Return the dtype in which .npy stores a variable's: bytes for those that NumPy lacks, bfloat16 for instance."""
    try:
        dtype = np.dtype(tf.as_dtype(name).as_numpy_dtype)
    except TypeError:
        return None
    return np.dtype(dtype.str)


# ---- random numbers


def _require_random(state: TrainingState) -> None:
    states: Any = state.random
    _require(isinstance(states, list) and len(states) == state.workers, "random", states)
    for rank, own in enumerate(states):
        if own is not None:
            _require_random_of_worker(own, f"random[{rank}]")


def _require_random_of_worker(own: Any, name: str) -> None:
    _require(isinstance(own, dict) and set(own) == RANDOM_FIELDS, name, own)
    _require(isinstance(own["own"], list) and _has_integers_only(own["own"]), f"{name}'s own", own["own"])
    _require(_sets_python(own["python"]), f"{name}'s python", own["python"])
    _require(_sets_numpy(own["numpy"]), f"{name}'s numpy", own["numpy"])
    seeds = own["keras"]
    pairs = isinstance(seeds, list) and all(_are_integers(seed) and len(seed) == 2 for seed in seeds)  # noqa: PLR2004
    _require(pairs and len(seeds) <= 1, f"{name}'s keras", seeds)
    _require(own["data"] is None or _are_integers(own["data"]), f"{name}'s data", own["data"])


def _has_integers_only(value: Any, depth: int = 0) -> bool:
    """True for integers, and for lists of such lists; their shapes are compared with the model's."""
    if isinstance(value, list):
        return depth < MOST_DIMENSIONS and all(_has_integers_only(each, depth + 1) for each in value)
    return isinstance(value, int)


def _sets_python(state: Any) -> bool:
    """Try the state on a generator of its own."""
    try:
        version, words, gauss = state
        random.Random().setstate((version, tuple(words), gauss))
    except (TypeError, ValueError, OverflowError):
        return False
    return version == random.Random.VERSION and (gauss is None or isinstance(gauss, float))


def _sets_numpy(state: Any) -> bool:
    """Try the state on a generator of its own, and bound its place in its buffer, which NumPy does not."""
    if not isinstance(state, dict) or state.get("bit_generator") not in list(BIT_GENERATORS):
        return False
    generator = getattr(np.random, state["bit_generator"])()
    try:
        generator.state = state
        place = state["state"].get("pos", state.get("buffer_pos", 0))
    except (TypeError, ValueError, OverflowError, LookupError, AttributeError):
        return False
    expected = as_json(generator.state)
    gauss = {"has_gauss", "gauss"}
    same = {name: value for name, value in state.items() if name not in gauss} == expected
    in_buffer = _is_count(place, BIT_GENERATORS[state["bit_generator"]])
    return same and in_buffer and state.get("has_gauss") in (0, 1) and isinstance(state.get("gauss"), float)


def as_json(state: Mapping[str, Any]) -> Any:
    """Return the state of a bit generator with lists in the place of arrays."""
    return json.loads(json.dumps(state, default=np.ndarray.tolist))
