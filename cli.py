"""What the scripts share on the command line: the parser, errors of one line, the next command."""

import argparse
import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from data import InputError

OUTPUT_DIR = Path("outputs")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with the options that all scripts share, and errors of one line."""

    def __init__(self, doc, data_help=None):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--output-dir", type=Path, default=OUTPUT_DIR, help="folder of the run (default: outputs)")
        if data_help:
            self.add_argument("--data", type=Path, help=f"an .npz file like MNIST's (default: {data_help})")

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def whole_number(least, most=2**32 - 1):
    """Return an argparse type: a whole number from `least` to `most`."""

    def parse(text):
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def number_from_0(text):
    """The argparse type of a finite number from 0."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return number


def as_options(values):
    """Return a dict of argument names and values as the command line that gives them; None is left out."""
    options = []
    for name, value in values.items():
        if value is not None:
            options += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return options


def next_command(script, output_dir, data=None):
    """Return the command line that goes on with the same run, and data named anew, as the user's shell takes it."""
    options = [] if output_dir == OUTPUT_DIR else ["--output-dir", str(output_dir)]
    options += ["--data", str(data)] if data else []
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join  # cmd.exe knows no single quotes
    return join(["python", *script.split(), *options])


def one_line(error):
    """Return what an error says as one line; for an error of the system, with the file it is about."""
    text = f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else str(error)
    return " ".join(text.split())


def open_streams():
    """Open standard streams that the caller closed (2>&-), so that no file of ours gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stderr = sys.stderr or open(os.devnull, "w")


def give_up(error, more=""):
    """End the program with one line on stderr: what the error says, and more."""
    message, status = one_line(error), 1
    if isinstance(error, KeyboardInterrupt):
        message, status = "stopped", 128 + (error.args or (signal.SIGINT,))[0]
    elif isinstance(error, ImportError):
        message += " (is what requirements.txt names installed in this environment?)"
    print(f"{Path(sys.argv[0]).name}: {message}{more}", file=sys.stderr)
    sys.exit(status)


interrupts = []  # the signals so far


def interrupt(number, frame):
    """Turn Ctrl-C and SIGTERM into the same exception."""
    interrupts.append(number)
    raise KeyboardInterrupt(number)


def stop_if_interrupted():
    """Raise what interrupt() raised in vain: Python drops an exception that reaches it inside a finalizer."""
    if interrupts:
        raise KeyboardInterrupt(interrupts[-1])


@contextlib.contextmanager
def interruptible():
    """Let an interrupt leave the block as what it was, whatever a library on its way up made of it."""
    try:
        yield
    except Exception:
        stop_if_interrupted()
        raise


def start(main):
    """Call a script's main(); what its user can mend ends as one line on stderr and status 1."""
    open_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        with interruptible():
            main()
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:  # as in `python evaluate.py | head -1`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError, ImportError, KeyboardInterrupt) as error:
        give_up(error)
