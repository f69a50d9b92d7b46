"""Checkpoints made by hand: what distgrad would write, and what somebody writes who knows how to seal a file."""

import io
import random
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.checkpoint import file as checkpoint_file
from distgrad.checkpoint.file import CheckpointContent
from distgrad.checkpoint.metadata import as_json


def random_state() -> dict[str, Any]:
    """Of a worker whose model has one layer that draws."""
    version, words, gauss = random.Random(1).getstate()
    numpy = as_json(np.random.RandomState(1).get_state(legacy=False))
    return {"own": [[1, 2]], "python": [version, list(words), gauss], "numpy": numpy, "keras": [[1, 2]], "data": []}


def content(step: int, arrays: Mapping[str, np.ndarray], **changes: Any) -> CheckpointContent:
    """What a training with these variables would save."""
    meta = {
        "step": step,
        "workers": 1,
        "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        "position": {"epochs": 0, "passes": 0, "taken": step},
        "fit": {"epoch": 0, "batch": step, "logs": {"loss": 0.5}, "over": False, "order": [3, 1]},
        "variables": [f"{path} {array.dtype.name} {array.shape}" for path, array in arrays.items()],
        "metrics": [],
        "random": [random_state()],
    }
    named = {f"variables/{index:05d}/{path}": array for index, (path, array) in enumerate(arrays.items())}
    return CheckpointContent(named, meta | changes)


Entry = tuple[zipfile.ZipInfo | str, bytes]


def seal(path: Path, entries: Sequence[Entry], method: int = zipfile.ZIP_STORED) -> None:
    """Write a zip of these entries with a checksum that holds."""
    with path.open("w+b") as file:
        with zipfile.ZipFile(file, "w", method) as packed:
            for name, data in entries:
                packed.writestr(name, data)
            packed.comment = checkpoint_file.SEAL + b"0" * checkpoint_file.DIGEST
        checkpoint_file._seal(file)


def reseal(path: Path, data: bytes) -> None:
    """Write bytes whose last ones become a checksum that holds."""
    with path.open("w+b") as file:
        file.write(data)
        checkpoint_file._seal(file)


def entries_of(path: Path) -> list[Entry]:
    """Read the entries of a file."""
    with zipfile.ZipFile(path) as packed:
        return [(name, packed.read(name)) for name in packed.namelist()]


def npy(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header(shape: Sequence[int], descr: str = "<f4", fortran_order: bool = False) -> bytes:
    """An array's description without the array."""
    described = io.BytesIO()
    fields = {"descr": descr, "fortran_order": fortran_order, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(described, fields)
    return described.getvalue()


def seal_overlapping(path: Path, meta: str, count: int, data: bytes) -> None:
    """Write a file whose entries each hold all that come after them: few bytes that read as many."""
    infos, tail = [], data
    for number in reversed(range(count)):
        body = header([len(tail)], "|u1") + tail
        info = zipfile.ZipInfo(f"{number}.npy")
        info.CRC, info.file_size, info.compress_size = zlib.crc32(body), len(body), len(body)
        tail = info.FileHeader(zip64=False) + body
        infos.append((info, len(tail)))
    with path.open("w+b") as file:
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("meta.json", meta)
            end = file.tell() + len(tail)
            file.write(tail)
            packed.start_dir = file.tell()
            for info, length in infos:
                info.header_offset = end - length
                packed.filelist.append(info)
            packed.comment = checkpoint_file.SEAL + b"0" * checkpoint_file.DIGEST
        checkpoint_file._seal(file)
