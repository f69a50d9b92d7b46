"""Starts a module of distgrad as a program that loads nothing but distgrad and the standard library.

    python -I -S isolated.py distgrad.launching.cleanup ARGUMENT...      calls the module's `main(*arguments)`

`-S` leaves out site-packages, which take time to find and may hold
startup code of other packages. `-I` leaves out PYTHONPATH and this file's
folder, in which a file could be taken for a module of the standard library. distgrad itself is then found only because
its parent folder is added here, behind the standard library.
"""

import importlib
import os
import sys


def isolated_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `main(*arguments)` of a module of distgrad."""
    return [sys.executable, "-I", "-S", __file__, module, *arguments]


if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    importlib.import_module(sys.argv[1]).main(*sys.argv[2:])
