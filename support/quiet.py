"""Importing this loads Keras for a script: without TensorFlow's greeting, and what goes wrong is one line.

It changes the process, so it is for a script's own. A notebook imports Keras as it likes. Unless its user sets it,
TF_ENABLE_ONEDNN_OPTS becomes 1: TensorFlow turns oneDNN's kernels on by itself on newer processors only.
"""

import contextlib
import faulthandler
import importlib
import importlib.util
import os
import re
import sys
import tempfile

from support.errors import give_up

OLDEST_KERAS = [3, 15, 1]  # the one of requirements.txt, which everything here is tested with
BACKENDS = ("tensorflow", "jax", "torch")  # Keras has others, which cannot train


def need(folder, *packages):
    """End a script with one line unless these packages are here; a folder's requirements.txt names them."""
    for name in packages:
        if not importlib.util.find_spec(name):
            give_up(f"no {name} here: install what {folder}/requirements.txt names, for {sys.executable}")


def check_backend(name):
    """End the script with one line when Keras' backend is one that cannot train."""
    if name and name not in BACKENDS:
        give_up(f"Keras' backend {name} cannot train: set KERAS_BACKEND to one of {', '.join(BACKENDS)}")


def load_keras():
    """Import Keras and Matplotlib; what they say on file descriptor 2 is shown only if that fails.

    TensorFlow greets there, whatever its log level. If an import ends the process, as on a processor that TensorFlow
    was not built for, faulthandler says which.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)  # the caller closed this stream (2>&-), no file of ours may get its number
    os.close(number)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    with contextlib.suppress(AttributeError):  # a closed stream is None
        sys.stdout.reconfigure(errors="backslashreplace")  # for a path that this terminal cannot show
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no help against the greeting, but against what follows it
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ["MPLBACKEND"] = "agg"
    install = f"install what requirements.txt names, for {sys.executable}"
    try:
        said = tempfile.TemporaryFile()
    except OSError as error:  # as in a container that is read-only, or where the disk is full
        give_up(f"{error.strerror}: name a folder that can be written with TMPDIR")
    stderr = os.dup(2)
    faulthandler.enable(stderr)
    with said:
        os.dup2(said.fileno(), 2)
        try:
            for name in ("numpy", "matplotlib", "keras"):
                importlib.import_module(name)
        except (Exception, KeyboardInterrupt) as error:  # an unknown backend, a missing package, a broken one
            said.seek(0)
            os.write(stderr, said.read())
            os.dup2(stderr, 2)
            config = sys.modules.get("keras.src.backend.config")  # what Keras began to load, if it got so far
            check_backend(config and config.backend())
            if isinstance(error, ModuleNotFoundError) and error.name in ("jax", "torch"):
                install = f"KERAS_BACKEND asks for it, install {error.name}, for {sys.executable}"
            give_up(error, f": {install}" if isinstance(error, Exception) else "")
        finally:
            os.dup2(stderr, 2)
            faulthandler.disable()
            os.close(stderr)
    keras = sys.modules["keras"]
    check_backend(keras.backend.backend())
    if [*map(int, re.findall(r"\d+", keras.__version__)[:3])] < OLDEST_KERAS:
        give_up(f"this is Keras {keras.__version__}, which gives some figures to the wrong output: {install}")
    if keras.backend.backend() != "tensorflow":
        sys.modules.setdefault("tensorflow", None)  # or Keras loads it here too, where it is installed


load_keras()
