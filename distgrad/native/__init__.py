"""The compiled core: memory that ranks share, and what is done to it, as TensorFlow operations and as C functions.

    page.h            what a process tells the watchdogs of its host
    numbers.h, .cpp   adding vectors and describing them
    rows.h, .cpp      gradients of tables of which few rows are touched
    window.h, .cpp    the memory, how ranks meet, the sum
    ops.cpp           both as operations of TensorFlow, and as functions for Python
    tensorflow.h      the part of TensorFlow's C API that the operations use

Compiled, because the way into Python costs a small step more than its sum does, and because only so one pass over the
parts can add, describe and divide.

pip builds it, with any C++17 compiler and without TensorFlow; it works with every TensorFlow that has this C API.
"""

import ctypes
import functools
import importlib.machinery
from pathlib import Path
from typing import Any

import tensorflow as tf

from distgrad.errors import EngineMissing

Event = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)

_POINTER, _INT, _LONG, _BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_bool
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "distgrad_window_new": (_POINTER, [Event, _INT, _POINTER]),
    "distgrad_window_bytes": (_LONG, [_LONG, _INT]),
    "distgrad_window_map": (_BOOL, [_POINTER, _INT, _LONG, _INT, _INT, _INT, _BOOL]),
    "distgrad_window_table": (_POINTER, [_POINTER, _LONG, _LONG]),
    "distgrad_window_close": (None, [_POINTER]),
    "distgrad_window_part": (_POINTER, [_POINTER]),
    "distgrad_window_result": (_POINTER, [_POINTER]),
    "distgrad_window_votes": (_POINTER, [_POINTER]),
    "distgrad_window_type": (_INT, [_POINTER]),
    "distgrad_window_fill": (None, [_POINTER, _LONG, _LONG]),
    "distgrad_window_sum": (_BOOL, [_POINTER, _INT, _LONG]),
    "distgrad_add_parts": (None, [_POINTER, _POINTER, _INT, _LONG]),
    "distgrad_end_mpi": (None, [_POINTER, _POINTER, ctypes.c_char_p]),
    "distgrad_at_exit": (None, [_POINTER, _POINTER, _POINTER, ctypes.c_char_p]),
}


def _library() -> str:
    here = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (here / f"core{suffix}").exists():
            return str(here / f"core{suffix}")
    raise EngineMissing(
        "distgrad's compiled core is missing", "install distgrad with pip, which builds it", everywhere=True
    )


@functools.cache
def operations() -> Any:
    """TensorFlow's wrappers of the operations: distgrad_sum, _add, _add_rows, _collect, _describe and _mark.

    Raises:
        EngineMissing: the core was not built, or does not load into this TensorFlow.
    """
    library = _library()
    # The core does not name TensorFlow's library, which lies in another place on every machine.
    ctypes.CDLL(str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.so*"))), mode=ctypes.RTLD_GLOBAL)
    try:
        return tf.load_op_library(library)
    except tf.errors.OpError as error:
        raise EngineMissing(
            f"distgrad's compiled core does not load into TensorFlow {tf.__version__} ({error.message})",
            "install distgrad again, for this TensorFlow",
            everywhere=True,
        ) from None


@functools.cache
def functions() -> ctypes.CDLL:
    """The core's functions, which let other Python threads run while they work."""
    operations()
    core = ctypes.CDLL(_library())
    for name, (result, arguments) in _SIGNATURES.items():
        getattr(core, name).restype, getattr(core, name).argtypes = result, arguments
    return core
