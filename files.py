"""Files that are whole at every moment, and a folder that one program at a time works in."""

import contextlib
import json
import os

from data import InputError

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path; when the block succeeds, the file written there becomes `path` at one stroke."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name != "nt":  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # some file systems sync none
                os.fsync(folder)  # without it a power cut can undo the rename
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    """Write a dict as a JSON file."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def locked(folder, program="train.py"):
    """Make the folder if need be, and keep other processes out of it; the system's lock ends with this one.

    program: what works there, for the message. Raises InputError when another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            if os.name == "nt":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another {program} is at work in {folder}: wait for it, or choose another --output-dir")
        yield
