"""What goes wrong and can be mended, and the one line in which a program says so. It needs nothing but Python."""

import os
import signal
import sys
from pathlib import Path


class InputError(ValueError):
    """Something the person at the keyboard can mend; the message says what and how."""


def give_up(error, more=""):
    """End the program with one line on stderr: what the error says, and more."""
    message = f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else str(error)
    message, status = " ".join(message.split()) or "out of memory", 1  # a MemoryError may say nothing
    if isinstance(error, KeyboardInterrupt):
        message, status = "stopped", 128 + (error.args or (signal.SIGINT,))[0]
    try:
        print(end="", flush=True)
    except OSError as lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python, which tries again at the end
        message = f"the output could not be written ({lost.strerror})"
    print(f"{Path(sys.argv[0]).name}: {message}{more}", file=sys.stderr)
    sys.exit(status)
