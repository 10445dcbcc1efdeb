"""Bad input: one line on stderr that says what is wrong, the right exit status, and every file as it was."""

import json
import runpy
import shutil
import signal
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, call, files, run_script

from data import DATA, InputError, load_mnist
from run_folder import read_stamp

EPOCHS, LIMIT = 2, 64


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """The folder of a finished run, to be copied by each case that needs one."""
    folder = tmp_path_factory.mktemp("finished")
    call("train.py", "--output-dir", folder, "--data", small_data, "--epochs", EPOCHS, "--limit", LIMIT)
    (folder / "reconstructions").mkdir()
    for result in ("metrics.json", "training.png", "reconstructions/00.png"):
        (folder / result).touch()
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def comment(path, epoch):
    """Make a checkpoint say that it is of another epoch."""
    run, _ = read_stamp(path)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = json.dumps({"run": run, "epoch": epoch}).encode()


def change(path, **arrays):
    """Change arrays of an .npz file; None takes one out."""
    with np.load(path) as file:
        changed = {name: array for name, array in ({**file} | arrays).items() if array is not None}
    np.savez(path, **changed)


def network(image_shape=(28, 28, 1), code=False):
    """A network with the article's output names; its input may be another, and it may hold code."""
    image = keras.Input(image_shape, name="image")
    x = keras.layers.Lambda(lambda values: 1 - values)(image) if code else image
    classification = keras.layers.Dense(10, name="classification")(keras.layers.Flatten()(x))
    autoencoder = keras.layers.Conv2D(1, 3, padding="same", name="autoencoder")(x)
    return keras.Model(image, [classification, autoencoder])


def edit_settings(folder, **settings):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def lose_data(folder, path):
    """Make the run's own data those at another path, changed, or at none."""
    if path:
        change(path, y_train=np.zeros(320, np.uint8))
    edit_settings(folder, data=str(path or folder / "gone.npz"))


def stopped(folder):
    """Make of a finished run one that was stopped after its first epoch, as far as a reader can tell."""
    history = folder / "history.csv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))


# A case: its name, the command line, what is done before to the folder of a finished run and to a copy of the
# data (f and d), the expected status, a word of the message. F and D stand for the two in the command line.
COMMAND_LINES = [
    ("no epochs", "train.py --epochs 0", None, 2, "--epochs"),
    ("half an epoch", "train.py --epochs 0.5", None, 2, "--epochs"),
    ("negative batch", "train.py --batch-size -1", None, 2, "--batch-size"),
    ("no images", "train.py --limit 0", None, 2, "--limit"),
    ("negative seed", "train.py --seed -1", None, 2, "--seed"),
    ("seed too large", "train.py --seed 4294967296", None, 2, "--seed"),
    ("word as seed", "train.py --seed one", None, 2, "--seed"),
    ("one weight", "train.py --loss-weights 1", None, 2, "--loss-weights"),
    ("negative weight", "train.py --loss-weights 1 -1", None, 2, "--loss-weights"),
    ("infinite weight", "train.py --loss-weights inf 1", None, 2, "--loss-weights"),
    ("two weights of 0", "train.py --loss-weights 0 0", None, 2, "--loss-weights: with 0 and 0"),
    ("unknown precision", "train.py --precision float64", None, 2, "--precision"),
    ("both ways on", "train.py --resume --overwrite", None, 2, "--overwrite"),
    ("unknown option", "train.py --learning-rate 1", None, 2, "--learning-rate"),
    ("no pairs", "visualize.py --count 0", None, 2, "--count"),
    ("unknown option of evaluate", "evaluate.py --fast", None, 2, "--fast"),
]
NEW = "train.py --output-dir F/new --data D"
DATA_FILES = [
    ("data missing", NEW, lambda f, d: d.unlink(), 1, "no data file"),
    ("data truncated", NEW, lambda f, d: truncate(d), 1, "not an .npz"),
    ("data is text", NEW, lambda f, d: d.write_text("x_train"), 1, "not an .npz"),
    ("data is empty", NEW, lambda f, d: d.write_text(""), 1, "not an .npz"),
    ("data is a folder", NEW, lambda f, d: (d.unlink(), d.mkdir()), 1, "not an .npz"),
    ("data lacks an array", NEW, lambda f, d: change(d, y_test=None), 1, "y_test"),
    ("images of 32x32", NEW, lambda f, d: change(d, x_train=np.zeros((320, 32, 32), np.uint8)), 1, "x_train"),
    ("images with a channel", NEW, lambda f, d: change(d, x_test=np.zeros((200, 28, 28, 1), np.uint8)), 1, "x_test"),
    ("images as floats", NEW, lambda f, d: change(d, x_train=np.zeros((320, 28, 28), np.float32)), 1, "uint8"),
    ("images as integers", NEW, lambda f, d: change(d, x_train=np.zeros((320, 28, 28), np.int64)), 1, "uint8"),
    ("no images at all", NEW, lambda f, d: change(d, x_test=np.zeros((0, 28, 28), np.uint8)), 1, "at least 1"),
    ("fewer labels than images", NEW, lambda f, d: change(d, y_train=np.zeros(319, np.uint8)), 1, "y_train"),
    ("label 10", NEW, lambda f, d: change(d, y_train=np.full(320, 10)), 1, "0 to 9"),
    ("label -1", NEW, lambda f, d: change(d, y_test=np.full(200, -1)), 1, "0 to 9"),
    ("labels as floats", NEW, lambda f, d: change(d, y_test=np.zeros(200)), 1, "whole numbers"),
    ("data with a pickle", NEW, lambda f, d: change(d, y_train=np.array([{}] * 320)), 1, "not an .npz"),
    ("data missing for evaluate", "evaluate.py --output-dir F --data D", lambda f, d: d.unlink(), 1, "no data file"),
    (
        "data truncated for visualize",
        "visualize.py --output-dir F --data D",
        lambda f, d: truncate(d),
        1,
        "not an .npz",
    ),
]
AGAIN = "train.py --output-dir F --data D"
RESUME = f"{AGAIN} --resume --epochs 3"
RUNS = [
    ("a finished run is there", AGAIN, None, 1, "finished run of 2 epochs: train it further with --resume --epochs 4"),
    ("an unfinished run is there", AGAIN, lambda f, d: stopped(f), 1, "after epoch 1: go on with --resume"),
    ("folder below a file", "train.py --output-dir F/settings.json/new --data D", None, 1, "settings.json"),
    ("folder is a file", "train.py --output-dir F/settings.json --data D", None, 1, "settings.json"),
    ("nothing to resume", f"{NEW} --resume", None, 1, "there is no run in"),
    ("another seed", f"{RESUME} --seed 1", None, 1, "seed"),
    ("another batch size", f"{RESUME} --batch-size 16", None, 1, "batch_size"),
    ("another limit", f"{RESUME} --limit 65", None, 1, "limit"),
    ("other loss weights", f"{RESUME} --loss-weights 0.5 0.5", None, 1, "loss_weights"),
    ("another precision", f"{RESUME} --precision mixed_bfloat16", None, 1, "precision is float32 in this run"),
    ("another backend", RESUME, lambda f, d: edit_settings(f, backend="theano"), 1, "backend"),
    ("another learning rate", RESUME, lambda f, d: edit_settings(f, learning_rate=1), 1, "learning_rate"),
    ("another data file", RESUME, lambda f, d: change(d, y_train=np.zeros(320, np.uint8)), 1, "not on"),
    ("the project's MNIST", "train.py --output-dir F --resume --data MNIST", None, 1, "small.npz, not on mnist.npz"),
    ("another network", RESUME, lambda f, d: edit_settings(f, network={"sha256": "0"}), 1, "model.py changed"),
    ("another run's checkpoint", RESUME, lambda f, d: edit_settings(f, run="0"), 1, "are of two runs"),
    ("its data are gone", "train.py --output-dir F --resume", lambda f, d: lose_data(f, None), 1, "with --data"),
    ("its data changed", "train.py --output-dir F --resume", lose_data, 1, "has changed since"),
    ("settings missing", AGAIN, lambda f, d: (f / "settings.json").unlink(), 1, "lost its settings.json: replace it"),
    ("settings missing too", RESUME, lambda f, d: (f / "settings.json").unlink(), 1, "lost its settings.json: repl"),
    ("fewer epochs", f"{AGAIN} --resume --epochs 1", None, 1, "--epochs 1"),
    ("settings cut", RESUME, lambda f, d: (f / "settings.json").write_text('{"epochs": 2'), 1, "settings.json"),
    ("settings empty", RESUME, lambda f, d: (f / "settings.json").write_text("{}"), 1, "settings.json"),
    ("history missing", RESUME, lambda f, d: (f / "history.csv").unlink(), 1, "history.csv"),
    ("history cut", RESUME, lambda f, d: truncate(f / "history.csv"), 1, "--overwrite"),
    ("history cut, no flag", AGAIN, lambda f, d: truncate(f / "history.csv"), 1, "--overwrite"),
    ("checkpoint missing", RESUME, lambda f, d: (f / "checkpoint.keras").unlink(), 1, "checkpoint.keras is missing"),
    ("only history left", RESUME, lambda f, d: [p.unlink() for p in f.glob("*.keras")], 1, "checkpoint.keras is miss"),
    ("checkpoint truncated", RESUME, lambda f, d: truncate(f / "checkpoint.keras"), 1, "checkpoint.keras"),
    ("checkpoint of other steps", RESUME, lambda f, d: comment(f / "checkpoint.keras", 1), 1, "number of steps"),
    ("checkpoint of no epoch", RESUME, lambda f, d: comment(f / "checkpoint.keras", None), 1, "of which epoch"),
    ("checkpoint is text", RESUME, lambda f, d: (f / "checkpoint.keras").write_text("PK"), 1, "not a readable"),
    ("checkpoint is empty", RESUME, lambda f, d: (f / "checkpoint.keras").write_text(""), 1, "not a readable"),
    ("checkpoint with code", RESUME, lambda f, d: network(code=True).save(f / "checkpoint.keras"), 1, "not a readable"),
    ("checkpoint of another", RESUME, lambda f, d: network().save(f / "checkpoint.keras"), 1, "not a readable"),
    (
        "no optimizer in it",
        RESUME,
        lambda f, d: shutil.copy(f / "model.keras", f / "checkpoint.keras"),
        1,
        "not a readable checkpoint of this network",
    ),
]
RECORDED = "python evaluate.py --output-dir outputs/reference"
MODELS = (
    [
        (f"{script} {name}", f"{script} --output-dir {folder} --data D", change, 1, word)
        for script in ("evaluate.py", "visualize.py")
        for name, folder, change, word in [
            ("before any training", "F/new", None, "train.py first, or see the recorded one: " + RECORDED),
            ("before an epoch ended", "F", lambda f, d: (f / "model.keras").unlink(), "train.py --resume"),
            ("network truncated", "F", lambda f, d: truncate(f / "model.keras"), "not a readable Keras model"),
            ("network is text", "F", lambda f, d: (f / "model.keras").write_text("PK"), "not a readable Keras model"),
            ("network is empty", "F", lambda f, d: (f / "model.keras").write_text(""), "not a readable Keras model"),
            ("network with code", "F", lambda f, d: network(code=True).save(f / "model.keras"), "Lambda"),
            (
                "network for other images",
                "F",
                lambda f, d: network((32, 32, 1)).save(f / "model.keras"),
                "not the article's",
            ),
            ("network of one layer", "F", lambda f, d: one_layer().save(f / "model.keras"), "not the article's"),
        ]
    ]
    + [
        (f"{script} {name}", f"{script} --output-dir F", change, 1, word)
        for script in ("evaluate.py", "visualize.py")
        for name, change, word in [
            (
                "where its data are gone",
                lambda f, d: lose_data(f, None),
                "which is not there: give its place with --data",
            ),
            ("where its data changed", lose_data, "has changed since"),
            ("without settings", lambda f, d: (f / "settings.json").unlink(), "lost its settings.json"),
        ]
    ]
    + [
        (
            "no history to draw",
            "visualize.py --output-dir F --data D",
            lambda f, d: (f / "history.csv").unlink(),
            1,
            "history",
        ),
    ]
)
CASES = COMMAND_LINES + DATA_FILES + RUNS + MODELS


def one_layer():
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])


def run_here(capfd, monkeypatch, command):
    """Run a script as if it were started anew, but in this process, where Keras is loaded already."""
    script, *arguments = command
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return stop.value.code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "prepare", "status", "word"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(command, prepare, status, word, finished, small_data, tmp_path, capfd, monkeypatch):
    folder, data_file = tmp_path / "run", tmp_path / "data.npz"
    shutil.copytree(finished, folder)
    shutil.copy(small_data, data_file)
    if prepare:
        prepare(folder, data_file)
    before = files(tmp_path)
    command = [part.replace("F", str(folder), 1) if part[0] == "F" else part for part in command.split()]
    command = [{"D": str(data_file), "MNIST": str(DATA)}.get(part, part) for part in command]

    found, stderr = run_here(capfd, monkeypatch, command)

    assert found == status, stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"{command[0]}: ")
    assert word in stderr
    assert "Traceback" not in stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "visualize.py"])
def test_bad_input_in_a_process_of_its_own(script, tmp_path):
    """The same from outside, where nothing is loaded yet: what a user sees."""
    for arguments, status in ((["--nonsense"], 2), (["--data", tmp_path / "none.npz"], 1)):
        done = run_script(script, "--output-dir", tmp_path / "new", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
        assert "Traceback" not in done.stderr
    assert not files(tmp_path)


def test_a_missing_package_is_named(finished):
    done = run_script("evaluate.py", "--output-dir", finished, KERAS_BACKEND="jax_is_not_there")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "requirements.txt" in done.stderr


def test_a_broken_data_file_is_refused_wherever_it_breaks(small_data, tmp_path):
    """A flipped or cut byte anywhere ends in an InputError or in four arrays that pass the checks, never else."""
    whole = small_data.read_bytes()
    path = tmp_path / "broken.npz"
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(len(whole), size=60):
        for broken in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            path.write_bytes(broken)
            try:
                load_mnist(path)
            except InputError:
                refused += 1
    assert refused >= 100


def test_settings_from_strangers_go_through_the_parser(finished, tmp_path, capfd, monkeypatch):
    """A number in settings.json that the command line would refuse is refused the same way."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "settings.json").read_text())
    for wrong in ({"epochs": -5}, {"seed": "0; rm"}, {"loss_weights": [1]}, {"batch_size": 1e9}):
        edit_settings(tmp_path, **(settings | wrong))
        status, stderr = run_here(capfd, monkeypatch, ["train.py", "--resume", "--output-dir", str(tmp_path)])
        assert (status, stderr.count("\n")) == (2, 1)
        assert f"--{next(iter(wrong)).replace('_', '-')}" in stderr
