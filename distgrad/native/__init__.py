"""The compiled core: memory that ranks share, the sum through it, and statistics, for TensorFlow and for Python.

    layout.py               what stands where, for Python: the numbers of layout.h and status_page.h

    layout.h, .cpp          structures and numbers that Python shares
    status_page.h           where a process is in the sums, for the watchdogs of its host
    problem.h               what an operation fails with
    data_type.h             types of entries
    simd.h                  a few entries in a register
    vector_math.h, .cpp     adding vectors, and their moments
    bfloat16.h, .cpp        float32 as bfloat16, and what rounding takes away
    sparse_variable.h, .cpp gradients of variables of which few rows are touched
    row_lists.h, .cpp       those rows as a rank shows them to the others, and their sum
    shared_memory.h, .cpp   the memory of a host's ranks: seats, slots, results
    meeting.h, .cpp         how ranks wait for one another
    sum_request.h, .cpp     what is asked of a sum
    window.h, .cpp          the sum
    publication.h, .cpp     a vector of which each rank gives a part
    accumulate.h, .cpp      the gradients of micro-batches, added up in a window's slot

    tensorflow.h            the part of TensorFlow's C API that is used
    kernels.h, .cpp         TensorFlow operations on that API; window_kernel.h, those on a window
    sum_op.cpp              DistgradSum
    publish_op.cpp          DistgradPublish
    accumulate_ops.cpp      DistgradAdd, AddRows, CollectRows: micro-batches
    check_ops.cpp           DistgradRequireShape, RequireRows: gradients that go through no window
    statistics_ops.cpp      DistgradMoments, Statistics, CopyTo, SquaredChange, NoteMicroBatch, WorkerRow
    mark_op.cpp             DistgradMarkSum: the sums of other engines
    python_api.cpp          a window's functions for Python; export.h
    mpi_exit.cpp            the end of MPI at the end of a process
    child_exit.cpp          the end of processes that are forked from a worker

It is compiled, because the way into Python costs a small step more than its sum does, and because only so one pass over
the vectors can add, describe and divide. pip builds it (build_backend.py), without TensorFlow; it works with
every TensorFlow that has this C API.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from distgrad.errors import EngineMissing
from distgrad.native.layout import require_same

# event, a, b -> 0 if Python did what the core asks; see layout.Event
Callback = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)

_ADDRESS, _INT, _LONG, _BOOL, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_bool, ctypes.c_char_p
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double


class _Signature(NamedTuple):
    result: Any
    arguments: tuple[Any, ...]


_FUNCTIONS = {
    "distgrad_window_new": _Signature(_ADDRESS, (Callback, _INT, _ADDRESS)),
    "distgrad_window_bytes": _Signature(_LONG, (_LONG, _INT)),
    "distgrad_window_range_moments_bytes": _Signature(_LONG, (_LONG, _INT)),
    "distgrad_window_map": _Signature(_BOOL, (_ADDRESS, _INT, _LONG, _INT, _INT, _INT, _BOOL)),
    "distgrad_window_map_published": _Signature(_BOOL, (_ADDRESS, _INT, _LONG)),
    "distgrad_window_close": _Signature(None, (_ADDRESS,)),
    "distgrad_window_sparse_variable": _Signature(_ADDRESS, (_ADDRESS, _TEXT, _LONG, _LONG)),
    "distgrad_window_sum_slots": _Signature(_BOOL, (_ADDRESS, _LONG, _LONG)),
    "distgrad_window_result": _Signature(_ADDRESS, (_ADDRESS,)),
    "distgrad_window_published": _Signature(_ADDRESS, (_ADDRESS,)),
    "distgrad_window_published_type": _Signature(_INT, (_ADDRESS,)),
    "distgrad_window_type": _Signature(_INT, (_ADDRESS,)),
    "distgrad_window_votes": _Signature(_ADDRESS, (_ADDRESS,)),
    "distgrad_window_compression": _Signature(_INT, (_ADDRESS,)),
    "distgrad_window_divided": _Signature(_LONG, (_ADDRESS,)),
    "distgrad_window_host_divisor": _Signature(_DOUBLE, (_ADDRESS,)),
    "distgrad_round": _Signature(None, (_ADDRESS, _ADDRESS, _LONG, _ADDRESS, _ADDRESS, _FLOAT)),
    "distgrad_round_sum": _Signature(None, (_ADDRESS, _ADDRESS, _INT, _LONG, _ADDRESS, _ADDRESS, _FLOAT)),
    "distgrad_widen": _Signature(None, (_ADDRESS, _ADDRESS, _LONG)),
    "distgrad_end_children_at_once": _Signature(None, ()),
    "distgrad_end_mpi": _Signature(None, (_ADDRESS, _ADDRESS, _TEXT)),
    "distgrad_at_exit": _Signature(None, (_ADDRESS, _ADDRESS, _ADDRESS, _TEXT)),
}


def _library() -> str:
    core = Path(__file__).parent / "core.abi3.so"
    if not core.exists():
        raise EngineMissing(
            "distgrad's compiled core is missing", "install distgrad with pip, which builds it", everywhere=True
        )
    return str(core)


@functools.cache
def operations() -> Any:
    """Load the core and return TensorFlow's wrappers of its operations: distgrad_sum, distgrad_add and so on.

    Raises:
        EngineMissing: the core was not built, does not load into this TensorFlow, or is of another version.
    """
    library = _library()
    # The core does not name TensorFlow's library, which lies in another place on every machine.
    ctypes.CDLL(str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.so*"))), mode=ctypes.RTLD_GLOBAL)
    try:
        loaded = tf.load_op_library(library)
    except tf.errors.OpError as error:
        raise EngineMissing(
            f"distgrad's compiled core does not load into TensorFlow {tf.__version__} ({error.message})",
            "install distgrad again, for this TensorFlow",
            everywhere=True,
        ) from None
    require_same(ctypes.CDLL(library))
    return loaded


@functools.cache
def functions() -> ctypes.CDLL:
    """Return the core's C functions, which let other Python threads run while they work.

    Raises:
        EngineMissing: see `operations`.
    """
    operations()
    core = ctypes.CDLL(_library())
    for name, signature in _FUNCTIONS.items():
        function = getattr(core, name)
        function.restype, function.argtypes = signature
    return core
