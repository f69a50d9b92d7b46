"""How pip builds distgrad: with setuptools, and where there is no C++ compiler with Zig's, which comes from a wheel.

pip loads this file by itself, see `build-system` in pyproject.toml. The result works with any CPython from 3.10 on and
any TensorFlow, as the core is built against neither; Zig's holds with every glibc from 2.28 on, too.
"""

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any] | None
ZIG = "ziglang>=0.14,<0.18"
WHEEL_FOR = os.environ.get("DISTGRAD_WHEEL_FOR", "")  # a processor, such as aarch64, to build for with Zig's compiler


def has_compiler() -> bool:
    """Return whether the C++ compiler that setuptools would take is there, and may be taken."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return not WHEEL_FOR and shutil.which(command.split()[0]) is not None


def get_requires_for_build_wheel(settings: Settings = None) -> list[str]:
    """List what a wheel is built with."""
    return [*build_meta.get_requires_for_build_wheel(settings), *_compiler()]


def get_requires_for_build_editable(settings: Settings = None) -> list[str]:
    """List what `pip install --editable` builds with."""
    return [*build_meta.get_requires_for_build_editable(settings), *_compiler()]


def build_wheel(folder: str, settings: Settings = None, metadata: str | None = None) -> str:
    """Build a wheel in a folder and return its name."""
    _prepare()
    return str(build_meta.build_wheel(folder, settings, metadata))


def build_editable(folder: str, settings: Settings = None, metadata: str | None = None) -> str:
    """Build for `pip install --editable`, in a folder, and return the name of what links to it."""
    _prepare()
    return str(build_meta.build_editable(folder, settings, metadata))


def _compiler() -> list[str]:
    return [] if has_compiler() else [ZIG]


def _prepare() -> None:
    """Have setuptools compile a source file on each core, with the compiler that is there."""
    from pybind11.setup_helpers import ParallelCompile  # noqa: PLC0415 (it is there while pip builds)

    ParallelCompile().install()
    _choose_compiler()


def _choose_compiler() -> None:
    if has_compiler():
        return
    machine = WHEEL_FOR or platform.machine()
    zig = f"{sys.executable} -m ziglang c++ -target {machine}-linux-gnu.2.28"
    link = f"{zig} -shared -s"  # without Zig's debug information, which is 14 times as large as the code
    os.environ |= {"CC": zig, "CXX": zig, "LDSHARED": link, "LDCXXSHARED": link}
    os.environ["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"
