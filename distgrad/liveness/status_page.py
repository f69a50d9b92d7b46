"""The status page of a process: shared memory in which it tells the watchdogs of its host how far it is in the sums.

native/layout.py has the fields. The memory has no name, so that nothing is left behind when a process is killed; other
processes open it through /proc. Where the system makes no such memory (before Linux 3.17, or forbidden by seccomp) they
cannot see it.
"""

import ctypes
import fcntl
import mmap
import os
from typing import ClassVar

import numpy as np

from distgrad.liveness import forks
from distgrad.native import layout

# The fields, each an int64.
SUM_COUNT, WAITING, BETWEEN_HOSTS, FINISHED, DUMPS_STACKS, AT_WORK, HEARTBEAT, CALL = layout.StatusPage
NO_FD = -1
MAP_FIXED = 0x10  # of Linux, which Python does not name


class StatusPage:
    """One process's page, as all processes of its host see it; read and written by field, `page[WAITING] = 1`.

    Args:
        fd: a file descriptor of its memory; NO_FD for new memory that no other process sees.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), np.int64)
        self._claimed = False

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
        if self._claimed:
            return False
        self._claimed = True
        try:
            if self.fd != NO_FD:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)  # the kernel takes this seal once
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        """Look no more at the page of another process."""
        os.close(self.fd)


class OwnPage(StatusPage):
    """The page of this process, which compiled code writes to until the process has ended.

    So the memory stays, even where the communicator is closed; a later one gets it again.
    """

    _unused: ClassVar[list["OwnPage"]] = []

    def __init__(self) -> None:
        super().__init__(_create_memory())
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._memory))  # longer than Python lives
        forks.give_up_in_children(self)

    @classmethod
    def get(cls) -> "OwnPage":
        """Return a page that nobody uses, all zeros."""
        page = cls._unused.pop() if cls._unused else cls()
        page._memory[:] = 0
        return page

    def close(self) -> None:
        """Leave the page to a later communicator."""
        self._unused.append(self)

    def become_child(self) -> None:
        """Put memory of the child's own in its place, which no other process sees."""
        self.fd = NO_FD
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        size, offset = ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_long(0)
        ctypes.CDLL(None).mmap(ctypes.c_void_p(self.address), size, rights, flags, NO_FD, offset)


def _create_memory() -> int:
    """Create the memory of a page and return its file descriptor, NO_FD where the system makes none without a name."""
    try:
        fd = os.memfd_create("distgrad-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError):
        return NO_FD
    os.ftruncate(fd, mmap.PAGESIZE)
    return fd
