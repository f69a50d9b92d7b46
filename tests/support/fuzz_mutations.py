"""Mutations of input, drawn from a seeded generator: bytes, texts, JSON, and zip files."""

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from support.checkpoints import Entry, header

Json = Any
BORDERS = [0, 1, -1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]
ODD_TEXTS = [
    *("", " ", "0", "-1", "1.5", "1e400", "NaN", "null", "worker", "chief", "a:1", "h1:2", "9" * 5000, "x" * 70_000),
    *("\x00", "\x1b[31m", "a\nb", "\u202e", "\ud800", "\u0661", "\u00e9", "$x^$", "<script>", "a b", "../..", "%s%n"),
    *("-oProxyCommand=id", "$(id)", "`id`"),
    *("variables/00000/", "float32", "(3, 4)", "MT19937", "PCG64", "__class__", "meta.json"),
]


NESTED = "lists in lists"  # which `as_text` puts here


def odd_value(rng: random.Random, depth: int = 0) -> Json:
    """Any JSON value, more often an unpleasant one."""
    kinds: list[Callable[[], Json]] = [
        lambda: rng.choice([None, True, False]),
        lambda: rng.choice(BORDERS) + rng.randint(-2, 2),
        lambda: rng.randint(-5, 700),
        lambda: rng.choice([0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -1e-5]),
        lambda: rng.choice(ODD_TEXTS),
        lambda: NESTED,
        lambda: "".join(chr(rng.randrange(0x250)) for _ in range(rng.randrange(9))),
    ]
    if depth < 3:
        kinds.append(lambda: [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))])
        kinds.append(lambda: {rng.choice(ODD_TEXTS)[:50]: odd_value(rng, depth + 1) for _ in range(rng.randrange(3))})
    return rng.choice(kinds)()


def _places(tree: Json, at_most: int) -> list[tuple[Any, Any]]:
    """Containers and their keys, of the whole tree, but few of each long list."""
    found: list[tuple[Any, Any]] = []
    queue = [tree]
    while queue and len(found) < at_most:
        node = queue.pop(0)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))[:3] + list(range(len(node)))[-2:]
        found += [(node, key) for key in keys]
        queue += [node[key] for key in keys if isinstance(node[key], dict | list)]
    return found


def changed_tree(rng: random.Random, tree: Json) -> Json:
    """The tree with up to three changes: a value replaced, removed, doubled, moved or a little different."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(tree, 500)
        if not places:
            return odd_value(rng)
        node, key = rng.choice(places)
        match rng.randrange(6):
            case 0 if isinstance(node, dict):
                del node[key]
            case 1 if isinstance(node, list):
                node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[min(key, len(node) - 1)]) if node else 0)
            case 2 if isinstance(node, list):
                node[:] = node[: rng.randrange(len(node) + 1)]
            case 3 if type(node[key]) in {int, float}:
                node[key] = rng.choice([node[key] + 1, -node[key], float(node[key]), str(node[key]), node[key] * 10**9])
            case 4:
                other, place = rng.choice(places)
                node[key] = copy.deepcopy(other[place]) if _has(other, place) else None
            case _:
                node[key] = odd_value(rng)
    return tree


def _has(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else key < len(node)


def as_text(rng: random.Random, tree: Json) -> str:
    """JSON, now and then with a flaw."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    text = text.replace(f'"{NESTED}"', _nested(rng))
    match rng.randrange(12):
        case 0:
            cut = rng.randrange(len(text) + 1)
            return text[:cut] + rng.choice(ODD_TEXTS) + text[cut + rng.randrange(3) :]
        case 1:
            return text[: rng.randrange(len(text) + 1)]
        case 2:
            return _nested(rng)
        case _:
            return text


def _nested(rng: random.Random) -> str:
    """Lists in lists, or objects in objects, now and then without their ends."""
    depth = rng.choice([10, 40, 300, 600, 900, 1100, 50_000])
    opening, end = rng.choice([("[", "]"), ('{"a":', "}")])
    return opening * depth + ("1" + end * depth if rng.random() < 0.8 else "")


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with up to eight flips, or a piece cut out, doubled, zeroed or overwritten by another one."""
    changed = bytearray(data)
    match rng.randrange(6):
        case 0:
            return bytes(changed[: rng.randrange(len(changed) + 1)])
        case 1:
            start = rng.randrange(len(changed))
            del changed[start : start + rng.choice([1, 4, 30, 1000])]
        case 2:
            start, length = rng.randrange(len(changed)), rng.choice([1, 30, 500])
            changed[start:start] = changed[start : start + length]
        case 3:
            start, length = rng.randrange(len(changed)), rng.choice([1, 4, 8, 200])
            changed[start : start + length] = bytes(length)
        case 4:
            start, other, length = rng.randrange(len(changed)), rng.randrange(len(changed)), rng.choice([4, 30, 200])
            changed[start : start + length] = changed[other : other + length]
        case _:
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# ---- zip files

SHORT, LONG = "<H", "<L"
FIELDS = {  # offset and format of the fields of a header, by its signature
    b"PK\x01\x02": [*((at, SHORT) for at in (8, 10, 28, 30, 32)), *((at, LONG) for at in (16, 20, 24, 42))],
    b"PK\x03\x04": [*((at, SHORT) for at in (6, 8, 26, 28)), *((at, LONG) for at in (14, 18, 22))],
    b"PK\x05\x06": [*((at, SHORT) for at in (4, 8, 10, 20)), *((at, LONG) for at in (12, 16))],
}


def changed_headers(rng: random.Random, data: bytes) -> bytes:
    """A zip file in whose headers up to three numbers are those of other headers, or on a border."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        signature = rng.choice(list(FIELDS))
        headers = _all_of(data, signature)
        offset, form = rng.choice(FIELDS[signature])
        start = rng.choice(headers) + offset
        donor = rng.choice(headers) + offset
        most = 2 ** (8 * struct.calcsize(form)) - 1
        (value,) = struct.unpack_from(form, data, donor)
        value = rng.choice([value, value + 1, value - 1, rng.randrange(len(data)), 0, most, most - 1, 8, 1])
        struct.pack_into(form, changed, start, min(max(value, 0), most))
    return bytes(changed)


def _all_of(data: bytes, signature: bytes) -> list[int]:
    found, start = [], data.find(signature)
    while start >= 0:
        found.append(start)
        start = data.find(signature, start + 1)
    return found


def changed_entries(rng: random.Random, entries: Sequence[Entry]) -> list[Entry]:
    """Entries of which some are missing, doubled, renamed, exchanged, in another order or of other content."""
    changed = list(entries)
    for _ in range(rng.choice([1, 1, 2])):
        if not changed:
            break
        index, other = rng.randrange(len(changed)), rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                del changed[index]
            case 1:
                changed.insert(other, changed[index])
            case 2:
                rng.shuffle(changed)
            case _:
                changed[index] = _changed_entry(rng, changed[index], changed[other])
    return changed


def _changed_entry(rng: random.Random, entry: Entry, other: Entry) -> Entry:
    """The entry with another name or other content."""
    name, data = entry
    match rng.randrange(4):
        case 0:
            return rng.choice([other[0], "a.npy", f"{name}.npy", "\x1b[31m.npy", "x.pkl"]), data
        case 1:
            return name, other[1]
        case 2:
            return name, changed_bytes(rng, data) if data else b""
        case _:
            return name, _with_other_header(rng, data)


def _with_other_header(rng: random.Random, data: bytes) -> bytes:
    """An array whose header claims another dtype, order or shape."""
    shapes = [(), (0,), (12,), (4, 3), (-1, -12), (10**13,), (2**32, 2**32), (1,) * 40]
    dtypes = ["<f4", ">f4", "<f8", "|S0", "|S4", "|V2", "|O", "<U1", "<i4", "|b1", "<M8[s]", "<c8"]
    return header(rng.choice(shapes), rng.choice(dtypes), rng.random() < 0.3) + data[rng.choice([0, 64, 128]) :]
