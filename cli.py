"""How the scripts begin and end: Keras without TensorFlow's greeting, the command line, errors of one line.

Every script imports this file first, because it loads Keras.
"""

import argparse
import contextlib
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

OLDEST_KERAS = [3, 15, 1]  # the one of requirements.txt, which everything here is tested with


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


def load_libraries():
    """Import Keras and Matplotlib; what they say on file descriptor 2 is shown only if that fails, or ends the process.

    TensorFlow greets there, whatever its log level. Another process, out of Ctrl-C's reach, holds the text: an
    import that aborts, on a processor that TensorFlow was not built for, leaves nobody else to show it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)  # the caller closed this stream (2>&-), no file of ours may get its number
    os.close(number)
    sys.stderr = sys.stderr or open(os.devnull, "w")
    with contextlib.suppress(AttributeError):  # a closed stream is None
        sys.stdout.reconfigure(errors="backslashreplace")  # for a path that this terminal cannot show
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no help against the greeting, but against what follows it
    os.environ["MPLBACKEND"] = "agg"
    install = f"install what requirements.txt names, for {sys.executable}"
    stderr, code = os.dup(2), "import sys; sys.stderr.buffer.write(sys.stdin.buffer.read())"
    keeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    os.dup2(keeper.stdin.fileno(), 2)
    try:
        importlib.import_module("matplotlib").rcdefaults()  # or the user's matplotlibrc decides over the pictures
        keras = importlib.import_module("keras")
        backend = keras.backend.backend()
        keeper.kill()
    except (Exception, KeyboardInterrupt) as error:  # an unknown backend, a missing package, a broken one
        give_up(error, f": {install}" if isinstance(error, Exception) else "")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        keeper.stdin.close()
        keeper.wait()
    if [*map(int, re.findall(r"\d+", keras.__version__)[:3])] < OLDEST_KERAS:
        give_up(f"this is Keras {keras.__version__}, which gives some figures to the wrong output: {install}")
    if backend != "tensorflow":
        sys.modules.setdefault("tensorflow", None)  # or Keras loads it here too, where it is installed


if "keras" not in sys.modules:  # a notebook or a test loads it first, and in its own way
    load_libraries()

import keras  # noqa: E402

from data import InputError  # noqa: E402

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


def number(kind, least, most=2**32 - 1):
    """Return an argparse type: a number of a kind, int or float, from `least` to `most`."""

    def parse(text):
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return kind(text)

    parse.__name__ = kind.__name__  # for argparse's message, "invalid int value"
    return parse


def next_command(script, output_dir, data=None):
    """Return the command line that goes on with the same run, and data named anew, as the user's shell takes it."""
    options = [] if output_dir == OUTPUT_DIR else ["--output-dir", str(output_dir)]
    options += ["--data", str(data)] if data else []
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join  # cmd.exe knows no single quotes
    python = "python" if os.environ.get("VIRTUAL_ENV") == sys.prefix else sys.executable  # an active environment's
    return join([python, *script.split(), *options])


@contextlib.contextmanager
def stoppable():
    """Within the block, let Ctrl-C and SIGTERM stop a training at the end of a step; a second signal ends at once.

    Yields the callback for Keras that does it, by raising KeyboardInterrupt with the signal's number.
    """
    signals = []

    def note(number, frame):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        signals.append(number)

    def stop(step, logs):
        if signals:
            raise KeyboardInterrupt(signals[0])

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, note))
        yield keras.callbacks.LambdaCallback(on_train_batch_end=stop, on_test_batch_end=stop)


def start(main):
    """Call a script's main(); what its user can mend ends as one line on stderr and status 1."""
    try:
        main()
        print(end="", flush=True)
    except BrokenPipeError:  # as in `python evaluate.py | head -1`: nobody reads on, and nothing is wrong
        sys.exit(1)
    except (InputError, OSError, MemoryError, KeyboardInterrupt) as error:
        give_up(error)
