"""One checkpoint in one file, which is there whole or not at all and is used only if its checksum holds.

The file is NumPy's own .npz, so that `numpy.load` opens it without distgrad: an uncompressed zip with one .npy file for
each array, and `meta.json`. Its zip comment ends in the SHA-256 of all bytes before, so that a flipped bit is found
anywhere, in the data or in the checksum.

Nothing is ever unpickled: an array of Python objects, which NumPy would unpickle, is refused by its header.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pickletools
import re
import secrets
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from distgrad.errors import reason_of, shown

META = "meta.json"
SEAL = b"distgrad checkpoint 1 sha256="  # in the zip comment, before the checksum
DIGEST = 64  # hexadecimal digits of the checksum
CHUNK = 1 << 20  # bytes that are read at once
NUMBERS = "biufcV"  # kinds of dtypes; NumPy stores those that it lacks as bytes, V
TEMPORARY = re.compile(r"step-[0-9]{10,}\.npz\.[0-9]+-[0-9a-f]{16}\.tmp")  # the name of a file that is not complete
PROCESS = secrets.token_hex(8)  # tells this process from one before it that had the same number


class CheckpointContent(NamedTuple):
    """The content of a file: arrays by name, and anything that JSON can say."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class Damaged(Exception):
    """A file that has changed since it was written; the text says in which way."""


class Hostile(Exception):
    """A file that somebody made to be unpickled or to fill the memory; the text says in which way."""


# ---- writing


def write(path: Path, content: CheckpointContent) -> None:
    """Write a file. After a crash at any moment there is either the whole new file or what was there before.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("x+b") as file:
            _pack(file, content)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the path at which this process writes a file until it is complete."""
    return path.with_name(f"{path.name}.{os.getpid()}-{PROCESS}.tmp")


def is_left_over(path: Path) -> bool:
    """True for the incomplete file of another process; this one may still be writing its own."""
    is_own = path.name.endswith(f".{os.getpid()}-{PROCESS}.tmp")
    return TEMPORARY.fullmatch(path.name) is not None and not is_own and path.is_file() and not path.is_symlink()


def _pack(file: IO[bytes], content: CheckpointContent) -> None:
    """Write everything but the checksum, and zeros in its place."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        # A ZipInfo has no time of day: the same state gives the same bytes.
        packed.writestr(zipfile.ZipInfo(META), json.dumps(content.meta))
        for name, array in content.arrays.items():
            with packed.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        packed.comment = SEAL + b"0" * DIGEST


def _seal(file: IO[bytes]) -> None:
    """Write the checksum, which is all that is missing."""
    digest = _digest(file)
    file.seek(-DIGEST, os.SEEK_END)
    file.write(digest)


def _digest(file: IO[bytes]) -> bytes:
    """SHA-256, as hexadecimal digits, of all but the last DIGEST bytes of a file."""
    left = file.seek(0, os.SEEK_END) - DIGEST
    file.seek(0)
    found = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        found.update(chunk)
        left -= len(chunk)
    return found.hexdigest().encode()


def _sync_directory(folder: Path) -> None:
    """Make sure that a rename in a folder survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading


def read(path: Path) -> CheckpointContent:
    """Read a file that `write` wrote.

    Raises:
        Damaged: it has changed since it was written.
        Hostile: it was made to do harm.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        if not _is_sealed(file):
            _raise_why_refused(file)
        try:
            return _unpacked(file)
        except OSError:
            raise
        except Exception as error:  # a hostile file may raise anything
            raise Hostile(f"its checksum holds, but distgrad did not write it: {reason_of(error)}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    # Without O_NONBLOCK, opening a pipe would wait for ever for a process that writes into it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Hostile("it is no regular file")
        yield file


def _is_sealed(file: IO[bytes]) -> bool:
    """True if the checksum holds."""
    size = file.seek(0, os.SEEK_END)
    if size < len(SEAL) + DIGEST:
        return False
    file.seek(-DIGEST, os.SEEK_END)
    return file.read() == _digest(file)


def _unpacked(file: IO[bytes]) -> CheckpointContent:
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as packed:
        _require_safe(packed, size)
        names = [name for name in packed.namelist() if name != META]
        arrays = {name.removesuffix(".npy"): _array(packed, name) for name in names}
        return CheckpointContent(arrays, json.loads(packed.read(META)))


def _array(packed: zipfile.ZipFile, name: str) -> np.ndarray:
    with packed.open(name) as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


def _require_safe(packed: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip that would be unpickled, or take more memory than its file has bytes. Only headers are read.

    Raises:
        ValueError: it is none that `write` makes.
    """
    entries = sorted(packed.infolist(), key=lambda entry: entry.header_offset)
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError("it holds two entries of the same name")
    ends = [entry.header_offset for entry in entries[1:]] + [size]
    for entry, end in zip(entries, ends, strict=True):
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{shown(entry.filename)} is compressed")
        if entry.header_offset < 0 or entry.header_offset + entry.file_size >= end:
            raise ValueError(f"{shown(entry.filename)} overlaps what comes after it")
        if entry.compress_size != entry.file_size:
            raise ValueError(f"{shown(entry.filename)} claims more bytes than it has")
    for entry in entries:
        if entry.filename != META:
            _require_safe_array(packed, entry)


def _require_safe_array(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse an array by its header.

    Raises:
        ValueError: it holds other things than numbers, or claims more of them than it has bytes.
    """
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{shown(entry.filename)} is no array")
    with packed.open(entry) as opened:
        version = np.lib.format.read_magic(opened)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(opened)
        data = entry.file_size - opened.tell()
    if dtype.hasobject:
        raise ValueError(f"{shown(entry.filename)} holds pickled Python objects")
    if dtype.kind not in NUMBERS or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError(f"{shown(entry.filename)} holds no numbers")
    if min(shape, default=0) < 0 or dtype.itemsize * math.prod(shape) != data:
        raise ValueError(f"{shown(entry.filename)} claims the shape {shown(shape)}, which its {data} bytes do not fill")


# ---- a file whose checksum does not hold


def _raise_why_refused(file: IO[bytes]) -> NoReturn:
    """Tell a damaged file from a hostile one.

    Raises:
        Damaged, Hostile.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(SEAL) - DIGEST))
    tail = file.read()
    file.seek(0)
    if _is_pickle(file.read(CHUNK)):
        raise Hostile("it is a pickle, which could run any program")
    if not tail.startswith(SEAL):
        file.seek(0)
        _refuse_foreign_zip(file)
    raise Damaged(f"it has {size} bytes, and their checksum is another than was written" if size else "it is empty")


def _is_pickle(start: bytes) -> bool:
    """True if a file starts as a pickle does. The pickle's instructions are read and not run."""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    try:
        return sum(1 for _ in pickletools.genops(io.BytesIO(start))) > 0
    except Exception:  # it raises whatever it comes across
        return False


def _refuse_foreign_zip(file: IO[bytes]) -> None:
    """Raise `Hostile` for a zip without distgrad's seal that holds what distgrad never writes."""
    try:
        packed = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        return
    with packed:
        try:
            _require_safe(packed, os.fstat(file.fileno()).st_size)
        except Exception as error:  # a hostile file may raise anything
            raise Hostile(f"distgrad did not write it: {reason_of(error)}") from None
