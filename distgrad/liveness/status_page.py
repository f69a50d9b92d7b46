"""The status page of a process: shared memory in which it tells the watchdogs of its host how far it is in the sums.

native/layout.py has the fields. The memory has no name, so that nothing is left behind when a process is killed; other
processes open it through /proc.
"""

import ctypes
import fcntl
import mmap
import os

import numpy as np

from distgrad.native import layout

SUM_COUNT, WAITING, BETWEEN_HOSTS, FINISHED, DUMPS_STACKS = layout.StatusPage  # the fields, each an int64


class StatusPage:
    """One process's page, as all processes of its host see it; read and written by field, `page[WAITING] = 1`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), np.int64)

    @classmethod
    def new(cls) -> "StatusPage":
        """Make the page of this process."""
        fd = os.memfd_create("distgrad-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, mmap.PAGESIZE)
        page = cls(fd)
        # Compiled code writes to it until the process has ended, and so longer than Python lives.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(page._memory))
        return page

    @property
    def address(self) -> int:
        """Address of the memory, for the compiled core."""
        return self._memory.ctypes.data

    def __getitem__(self, field: int) -> int:
        return int(self._memory[field])

    def __setitem__(self, field: int, value: int) -> None:
        self._memory[field] = value

    def claim(self) -> bool:
        """Return True to the first caller among all processes that see this page, False to every later one."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)  # the kernel takes this seal once
        except PermissionError:
            return False
        return True
