"""One checkpoint in one file, which is there whole or not at all and is believed only if its checksum holds.

The file is NumPy's own .npz, so that `numpy.load` opens it without distgrad: an uncompressed zip with one .npy an
array, and `meta.json`. Its zip comment ends in the SHA-256 of every byte before that, so that a flipped bit anywhere is
found, in the checksum as well as in what it is of.

Nothing in it is ever unpickled: an array of Python objects, which NumPy would have to, is refused by its header.
"""

import contextlib
import hashlib
import io
import json
import os
import pickletools
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

META = "meta.json"
SEAL = b"distgrad checkpoint 1 sha256="
DIGEST = 64  # hexadecimal digits
CHUNK = 1 << 20
TEMPORARY = ".tmp"


class Archive(NamedTuple):
    """What a file holds: arrays by name, and whatever JSON can say."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class Damaged(Exception):
    """A file that is not what was once written; the text says how."""


class Hostile(Exception):
    """A file that somebody else has made, in order to be unpickled or to fill the memory; the text says how."""


# ---- writing


def write(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write a file so that after a crash at any moment there is the whole new one, or what was there before.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("x+b") as file:
            _pack(file, arrays, meta)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _pack(file: IO[bytes], arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        # A ZipInfo has no time of day: the same state gives the same bytes.
        packed.writestr(zipfile.ZipInfo(META), json.dumps(meta))
        for name, array in arrays.items():
            with packed.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        packed.comment = SEAL + b"0" * DIGEST


def _seal(file: IO[bytes]) -> None:
    digest = _digest(file)
    file.seek(-DIGEST, os.SEEK_END)
    file.write(digest)


def _digest(file: IO[bytes]) -> bytes:
    """SHA-256, in hexadecimal digits, of all but the last DIGEST bytes."""
    left = file.seek(0, os.SEEK_END) - DIGEST
    file.seek(0)
    found = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        found.update(chunk)
        left -= len(chunk)
    return found.hexdigest().encode()


def _sync(folder: Path) -> None:
    """Make a rename in a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading


def read(path: Path) -> Archive:
    """Read a file that `write` wrote.

    Raises:
        Damaged: it is not as it was written.
        Hostile: it was made to do harm.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        if not _is_sealed(file):
            _refuse(file)
        try:
            return _unpacked(file)
        except OSError:
            raise
        except Exception as error:  # whatever somebody has thought of
            raise Hostile(f"its checksum holds, but distgrad did not write it: {error}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    # Without O_NONBLOCK, opening a pipe would wait for ever for who writes into it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Hostile("it is no regular file")
        yield file


def _is_sealed(file: IO[bytes]) -> bool:
    size = file.seek(0, os.SEEK_END)
    if size < len(SEAL) + DIGEST:
        return False
    file.seek(-DIGEST, os.SEEK_END)
    return file.read() == _digest(file)


def _unpacked(file: IO[bytes]) -> Archive:
    with zipfile.ZipFile(file) as packed:
        for entry in packed.infolist():
            _require_plain(packed, entry)
        names = [name for name in packed.namelist() if name != META]
        arrays = {name.removesuffix(".npy"): _array(packed, name) for name in names}
        return Archive(arrays, json.loads(packed.read(META)))


def _array(packed: zipfile.ZipFile, name: str) -> np.ndarray:
    with packed.open(name) as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


def _require_plain(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse by its header what would be unpickled, or would need more memory than it has bytes.

    Raises:
        ValueError: its name, or its dtype, or its size is not one that `write` gives.
    """
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename!r} is compressed")
    if entry.filename == META:
        return
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename!r} is no array")
    with packed.open(entry) as opened:
        version = np.lib.format.read_magic(opened)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(opened)
        data = entry.file_size - opened.tell()
    if dtype.hasobject:
        raise ValueError(f"{entry.filename!r} holds pickled Python objects")
    if dtype.itemsize * int(np.prod(shape, dtype=object)) != data:
        raise ValueError(f"{entry.filename!r} claims the shape {shape}, which it is too small for")


# ---- what is wrong with a file whose checksum does not hold


def _refuse(file: IO[bytes]) -> None:
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
    """Whether bytes are a pickle's, which is read here and not obeyed."""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    try:
        return sum(1 for _ in pickletools.genops(io.BytesIO(start))) > 0
    except Exception:  # it raises whatever it comes across
        return False


def _refuse_foreign_zip(file: IO[bytes]) -> None:
    """A zip that distgrad did not seal is no damaged checkpoint of it."""
    try:
        packed = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        return
    with packed:
        for entry in packed.infolist():
            try:
                _require_plain(packed, entry)
            except Exception as error:  # whatever somebody has thought of
                raise Hostile(f"distgrad did not write it: {error}") from None
