"""The command line: what all scripts share, the command that comes next, and an end of one line."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from support.errors import InputError, give_up

ROOT = Path(__file__).resolve().parent.parent
OUTPUT_DIR = Path("outputs")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with the options that all scripts share, and errors of one line."""

    def __init__(self, doc, data_help=None):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument(
            "--output-dir", type=Path, default=OUTPUT_DIR, help="folder of the run (default: %(default)s)"
        )
        if data_help:
            self.add_argument("--data", type=Path, help=f"an .npz file like MNIST's (default: {data_help})")

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see --help)\n")


def number(kind, least, most=2**32 - 1):
    """Return an argparse type: a number of a kind, int or float, from `least` to `most`."""

    def parse(text):
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return kind(text)

    parse.__name__ = kind.__name__  # for argparse's message, "invalid int value"
    return parse


def next_command(script, output_dir, data=None):
    """Return the command line that goes on with the same run, as the user's shell takes it in the present folder.

    script: one of this project, and perhaps its flags. data: where it was named on the command line, to be named again.
    """
    name, *options = script.split()
    try:
        path = os.path.relpath(ROOT / name)
    except ValueError:  # on Windows, on another drive
        path = str(ROOT / name)
    for flag, value in {"--output-dir": output_dir, "--data": data}.items():
        if value and value != OUTPUT_DIR:  # after an = a value may begin with a dash
            options += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join  # cmd.exe knows no single quotes
    python = "python" if os.environ.get("VIRTUAL_ENV") == sys.prefix else sys.executable  # an active environment's
    return join([python, path, *options])


def start(main):
    """Call a script's main(); what its user can mend ends as one line on stderr and status 1."""
    try:
        main()
        print(end="", flush=True)
    except BrokenPipeError:  # as in `python evaluate.py | head -1`: nobody reads on, and nothing is wrong
        sys.exit(1)
    except (InputError, OSError, MemoryError, KeyboardInterrupt) as error:
        give_up(error)
