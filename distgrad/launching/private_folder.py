"""Folders in /tmp and /dev/shm, where every user of the host may write: only one's own is used, and removed.

Another user may make a folder of a name that is known, put links into it, or a link where a folder was.
"""

import os
import shutil
import stat
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO  # what a folder's mode allows to everybody but its owner


def is_private(path: Path) -> bool:
    """Return whether this is a folder of this user's that is open to nobody else; a link to one is none."""
    mode = _mode_of_own_folder(path)
    return mode != 0 and not mode & OTHERS


def remove(path: Path) -> None:
    """Remove a folder and all that is in it if it is this user's; links, to it or in it, are not followed."""
    if _mode_of_own_folder(path):
        shutil.rmtree(path, ignore_errors=True)


def _mode_of_own_folder(path: Path) -> int:
    """Return the mode, 0 if this is no folder of this user's."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_mode if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() else 0
