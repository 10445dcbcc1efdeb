"""What the tests share: the real MNIST, a small cut of it as a file, and a way to run the scripts."""

import support.quiet  # noqa: F401 - first: it loads Keras as the scripts do

# isort: split
import contextlib
import ctypes
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from data import load_data
from support.run_folder import RUN_FILES

if sys.platform == "linux":
    # After every step glibc gives its memory back to the system, only to ask for it again. On a virtual machine that
    # can take as long as the step itself, so the tests, and what they start, keep it. It changes no number.
    os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_MAX_": "0"}
    for option, value in ((-1, 2**31 - 1), (-4, 0)):  # the same two
        ctypes.CDLL(None).mallopt(option, value)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as where a shell started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what they start inherits

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "outputs" / "reference"
STUDY = REFERENCE / "second_task"


@pytest.fixture(scope="session")
def mnist():
    """All of MNIST: (x_train, y_train), (x_test, y_test)."""
    return load_data()[:2]


@pytest.fixture(scope="session")
def small_data(mnist, tmp_path_factory):
    """An .npz file with MNIST's first 320 training and 80 test images: enough to go through every line."""
    (x_train, y_train), (x_test, y_test) = mnist
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=x_train[:320], y_train=y_train[:320], x_test=x_test[:80], y_test=y_test[:80])
    return path


def run_script(script, *arguments, **environment):
    """Run one of the project's scripts as its user would; returns the finished process, output as text.

    What is no file, "benchmarks.throughput", is a module, which is run in the project's folder.
    """
    is_file = str(script).endswith(".py")
    return subprocess.run(
        [sys.executable, *([ROOT / script] if is_file else ["-m", script]), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        cwd=None if is_file else ROOT,
    )


def succeed(script, *arguments, **environment):
    """Run a script that must succeed without a word on stderr; returns what it printed."""
    done = run_script(script, *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    return done.stdout


def call(script, *arguments):
    """Call a script's main() in this process, where Keras is loaded already; returns what it printed."""
    main = importlib.import_module(script.removesuffix(".py")).main
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(list(map(str, arguments)))
    return said.getvalue()


def tiles(columns):
    """Tiles of 32x32 pixels, 13 rows of so many, from the two photographs in colour that scikit-learn brings along."""
    return [
        photograph[: 13 * 32, : columns * 32]
        .reshape(13, 32, columns, 32, 3)
        .swapaxes(1, 2)
        .reshape(13 * columns, 32, 32, 3)
        for photograph in load_sample_images().images
    ]


def rows_of(history):
    """What train() returns as rows, a dict for each epoch."""
    return [dict(zip(history.history, values)) for values in zip(*history.history.values())]


def copy_run(folder, to):
    """Copy the files of a run, and nothing else of its folder."""
    for name in RUN_FILES:
        shutil.copy(folder / name, to)


def make_pipe(path):
    """Make a named pipe, which a program that opens it waits for; skips the test where there are none."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(path)


def files(folder):
    """The contents of every file below a folder, by path."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def dropouts(network):
    """The Dropout layers of a network."""
    return [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]


def metrics(folder):
    """What evaluate.py wrote in a folder."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
