"""Files that are whole at every moment, and locks that keep programs apart."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from support.errors import InputError

if os.name == "nt":
    import msvcrt
else:
    import fcntl

PART = ".part-"  # the folders in which files are written begin so


def replace(path, to):
    """Rename a file; on Windows that must wait, for up to five seconds, until nobody has the old one open."""
    for _ in range(50):
        try:
            os.replace(path, to)
            return
        except PermissionError:
            time.sleep(0.1)
    os.replace(path, to)


@contextlib.contextmanager
def atomic_write(path, folder=None):
    """Yield a path, in `folder` or beside `path`; when the block succeeds, the file written there becomes `path`."""
    with tempfile.TemporaryDirectory(prefix=PART, dir=folder or path.parent) as work:
        temporary = Path(work) / path.name
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
        if os.name != "nt":  # Windows opens no folders
            parent = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # some file systems sync none
                os.fsync(parent)  # without it a power cut can undo the rename
            os.close(parent)


def write_json(path, content):
    """Write a dict as a JSON file."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def locked(path, program=None):
    """Hold the lock of a file, which is made if need be, within the block; the system's lock ends with the process.

    Yields the open file. program: what, as InputError says it, is at work there when another process holds the lock.
    Without one, wait.
    """
    with open(path, "ab") as file:
        try:
            if os.name == "nt":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK if program else msvcrt.LK_LOCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if program else 0))
        except (BlockingIOError, PermissionError):
            refusal = f"another {program} is at work in {path.parent}: wait for it, or choose another --output-dir"
            raise InputError(refusal) from None
        except OSError:  # this file system has no locks
            pass
        yield file
