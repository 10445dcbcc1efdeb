"""Bad input: one line on stderr that says what is wrong, the right exit status, and every file as it was."""

import json
import os
import runpy
import shutil
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, call, files, run_script

from data import DATA, InputError, load_data
from support.run_folder import MODEL, load_network, read_history, read_settings, save_epoch

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


def comment(folder, text):
    """Make a run's network say something else of its epoch and run."""
    with zipfile.ZipFile(folder / MODEL, "a") as file:
        file.comment = text


def stamp(folder, **changes):
    """Change what a run's network says of its epoch and run."""
    comment(folder, json.dumps(load_network(folder)[1] | changes).encode())


def save_again(folder, **compiled):
    """Save a run's network without the optimizer, as the recorded one is, or compiled with another."""
    model = keras.saving.load_model(folder / MODEL, compile=False)
    if compiled:
        model.compile(**compiled)
    save_epoch(folder, model, read_settings(folder), read_history(folder))


def change(path, **arrays):
    """Change arrays of an .npz file; None takes one out."""
    with np.load(path) as file:
        changed = {name: array for name, array in ({**file} | arrays).items() if array is not None}
    np.savez(path, **changed)


def one_class(path):
    change(path, y_train=np.zeros(320, np.uint8), y_test=np.zeros(80, np.uint8))


def colours(path):
    change(path, x_train=np.zeros((320, 28, 28, 3), np.uint8), x_test=np.zeros((80, 28, 28, 3), np.uint8))


def network(image_shape=(28, 28, 1), code=False):
    """A network with the article's output names; its input may be another, and it may hold code."""
    image = keras.Input(image_shape, name="image")
    x = keras.layers.Lambda(lambda values: 1 - values)(image) if code else image
    classification = keras.layers.Dense(10, name="classification")(keras.layers.Flatten()(x))
    autoencoder = keras.layers.Conv2D(1, 3, padding="same", name="autoencoder")(x)
    return keras.Model(image, [classification, autoencoder])


def another_network(folder):
    """Put a network of other layers in place of a run's own, with its stamp."""
    _, stamped = load_network(folder)
    network().save(folder / MODEL)
    comment(folder, json.dumps(stamped).encode())


LOST = "lost"


def edit_settings(folder, **settings):
    """Change what settings.json says; LOST takes a name out."""
    path = folder / "settings.json"
    changed = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in changed.items() if value != LOST}))


def rename_column(folder):
    path = folder / "history.csv"
    path.write_text(path.read_text().replace("val_autoencoder_loss", "lost"))


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
    ("two weights of 0", "train.py --loss-weights 0 0", None, 2, "--loss-weights: with 0 everywhere"),
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
    ("data is a folder", NEW, lambda f, d: (d.unlink(), d.mkdir()), 1, "no data file"),
    ("data lacks an array", NEW, lambda f, d: change(d, y_test=None), 1, "y_test"),
    ("other sizes to test", NEW, lambda f, d: change(d, x_test=np.zeros((80, 32, 32), np.uint8)), 1, "make them alike"),
    ("colours to test", NEW, lambda f, d: change(d, x_test=np.zeros((80, 28, 28, 3), np.uint8)), 1, "make them alike"),
    (
        "two channels",
        NEW,
        lambda f, d: change(d, x_test=np.zeros((80, 28, 28, 2), np.uint8)),
        1,
        "(n, height, width, 3)",
    ),
    ("a side of 30", NEW, lambda f, d: change(d, x_train=np.zeros((320, 28, 30), np.uint8)), 1, "scale it to 28 or 32"),
    ("a side of 6", NEW, lambda f, d: change(d, x_train=np.zeros((320, 6, 28), np.uint8)), 1, "scale it to 8"),
    ("images as floats", NEW, lambda f, d: change(d, x_train=np.zeros((320, 28, 28), np.float32)), 1, "as uint8"),
    ("images as integers", NEW, lambda f, d: change(d, x_train=np.zeros((320, 28, 28), np.int64)), 1, "uint8"),
    ("no images at all", NEW, lambda f, d: change(d, x_test=np.zeros((0, 28, 28), np.uint8)), 1, "at least one image"),
    ("fewer labels than images", NEW, lambda f, d: change(d, y_train=np.zeros(319, np.uint8)), 1, "y_train"),
    ("a gap in the labels", NEW, lambda f, d: change(d, y_train=np.full(320, 11)), 1, "no image has the label 10"),
    ("a huge label", NEW, lambda f, d: change(d, y_train=np.full(320, 10**12)), 1, "no image has the label 10"),
    ("label -1", NEW, lambda f, d: change(d, y_test=np.full(80, -1)), 1, "from 0"),
    ("labels as floats", NEW, lambda f, d: change(d, y_test=np.zeros(80)), 1, "as integers"),
    (
        "labels in a column",
        NEW,
        lambda f, d: change(d, y_test=np.zeros((80, 1), np.int64)),
        1,
        "one number for each of",
    ),
    ("one class", NEW, lambda f, d: one_class(d), 1, "at least two"),
    ("too few names", NEW, lambda f, d: change(d, class_names=["a", "b"]), 1, "2 class names for 10 classes"),
    ("a name twice", NEW, lambda f, d: change(d, class_names=10 * ["a"]), 1, "each its own"),
    (
        "other images for evaluate",
        "evaluate.py --output-dir F --data D",
        lambda f, d: colours(d),
        1,
        "it was trained on",
    ),
    (
        "other images for visualize",
        "visualize.py --output-dir F --data D",
        lambda f, d: colours(d),
        1,
        "it was trained",
    ),
    (
        "more classes",
        "evaluate.py --output-dir F --data D",
        lambda f, d: change(d, y_test=np.full(80, 10)),
        1,
        "go up to 10",
    ),
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
    ("a finished run is there", AGAIN, None, 1, "holds a run: go on with --resume, and more --epochs"),
    ("an unfinished run is there", AGAIN, lambda f, d: stopped(f), 1, "holds a run: go on with --resume"),
    ("folder below a file", "train.py --output-dir F/settings.json/new --data D", None, 1, "settings.json"),
    ("folder is a file", "train.py --output-dir F/settings.json --data D", None, 1, "settings.json"),
    ("nothing to resume", f"{NEW} --resume", None, 1, "no run in"),
    ("another seed", f"{RESUME} --seed 1", None, 1, "seed"),
    ("another batch size", f"{RESUME} --batch-size 16", None, 1, "batch_size"),
    ("another limit", f"{RESUME} --limit 65", None, 1, "limit"),
    ("other loss weights", f"{RESUME} --loss-weights 0.5 0.5", None, 1, "loss_weights"),
    ("another precision", f"{RESUME} --precision mixed_bfloat16", None, 1, "precision is float32 in this run"),
    ("another backend", RESUME, lambda f, d: edit_settings(f, backend="theano"), 1, "backend"),
    ("another optimizer", RESUME, lambda f, d: edit_settings(f, optimizer="Adam"), 1, "optimizer is Adam in this run"),
    ("another data file", RESUME, lambda f, d: change(d, y_train=np.zeros(320, np.uint8)), 1, "not on"),
    ("the project's MNIST", "train.py --output-dir F --resume --data MNIST", None, 1, "small.npz, not on mnist.npz"),
    ("its data are gone", "train.py --output-dir F --resume", lambda f, d: lose_data(f, None), 1, "with --data"),
    ("its data changed", "train.py --output-dir F --resume", lose_data, 1, "now not there or changed"),
    ("settings missing", AGAIN, lambda f, d: (f / "settings.json").unlink(), 1, "holds a run: go on with --resume"),
    ("settings missing too", RESUME, lambda f, d: (f / "settings.json").unlink(), 1, "it has no settings.json"),
    ("fewer epochs", f"{AGAIN} --resume --epochs 1", None, 1, "--epochs 1"),
    ("settings cut", RESUME, lambda f, d: (f / "settings.json").write_text('{"epochs": 2'), 1, "settings.json"),
    ("settings without a seed", RESUME, lambda f, d: edit_settings(f, seed=LOST), 1, "settings.json: damaged"),
    ("settings empty", RESUME, lambda f, d: (f / "settings.json").write_text("{}"), 1, "settings.json"),
    ("history missing", RESUME, lambda f, d: (f / "history.csv").unlink(), 1, "history.csv"),
    ("history cut", RESUME, lambda f, d: truncate(f / "history.csv"), 1, "--overwrite"),
    ("network missing", RESUME, lambda f, d: (f / MODEL).unlink(), 1, "model.keras is missing; --overwrite starts"),
    ("network truncated", RESUME, lambda f, d: truncate(f / MODEL), 1, "not a readable Keras model"),
    ("network of another seed", RESUME, lambda f, d: stamp(f, seed=1), 1, "model.keras is of another run"),
    ("network of other images", RESUME, lambda f, d: stamp(f, limit=None), 1, "model.keras is of another run"),
    ("network of no epoch", RESUME, lambda f, d: stamp(f, epoch=None), 1, "of which run and epoch"),
    ("network of epoch 0", RESUME, lambda f, d: stamp(f, epoch=0), 1, "of which run and epoch"),
    ("network without a stamp", RESUME, lambda f, d: comment(f, b""), 1, "of which run and epoch"),
    ("network with a strange stamp", RESUME, lambda f, d: comment(f, b"[1]"), 1, "of which run and epoch"),
    ("network is text", RESUME, lambda f, d: (f / MODEL).write_text("PK"), 1, "not a readable Keras model"),
    ("network is empty", RESUME, lambda f, d: (f / MODEL).write_text(""), 1, "not a readable Keras model"),
    ("network with code", RESUME, lambda f, d: network(code=True).save(f / MODEL), 1, "not a readable Keras model"),
    ("network of others", RESUME, lambda f, d: another_network(f), 1, "has another network; has model.py"),
    ("no optimizer", RESUME, lambda f, d: save_again(f), 1, "holds no optimizer, it can only be"),
    (
        "another's optimizer",
        RESUME,
        lambda f, d: save_again(f, optimizer="sgd", loss="mse"),
        1,
        "holds no optimizer, it can only be",
    ),
]
# What settings.json, and the stamp in model.keras, may say in place of what train.py wrote.
WRONG_SETTINGS = {
    **{f"epochs {value!r}": {"epochs": value} for value in (LOST, None, "a word", 2.0, [2])},
    **{f"starts {value!r}": {"starts": value} for value in (LOST, None, [], [1], 5, "ab", {})},
    **{f"loss_weights {value!r}": {"loss_weights": value} for value in (["a", "b"], 1, {"a": 1, "b": 2})},
    **{f"seed {value!r}": {"seed": value} for value in (None, "0; rm", [])},
    **{f"data {value!r}": {"data": value} for value in (None, 5, ["x"])},
}
WRONG_EPOCHS = ("2", [2], 2.0, 1e99, float("nan"), -1)
NESTED = "[" * 200_000
RECORDED = "--output-dir outputs/reference has the recorded one"
MODELS = (
    [
        (f"{script} {name}", f"{script} --output-dir {folder} --data D", change, 1, word)
        for script in ("evaluate.py", "visualize.py")
        for name, folder, change, word in [
            ("before any training", "F/new", None, "python train.py begins one, " + RECORDED),
            ("before an epoch ended", "F", lambda f, d: (f / "model.keras").unlink(), "train.py --resume"),
            ("network truncated", "F", lambda f, d: truncate(f / "model.keras"), "not a readable Keras model"),
            ("network is text", "F", lambda f, d: (f / "model.keras").write_text("PK"), "not a readable Keras model"),
            ("network is empty", "F", lambda f, d: (f / "model.keras").write_text(""), "not a readable Keras model"),
            ("network with code", "F", lambda f, d: network(code=True).save(f / "model.keras"), "Lambda"),
            (
                "network for other images",
                "F",
                lambda f, d: network((32, 32, 1)).save(f / "model.keras"),
                "of which run",
            ),
            ("network of one layer", "F", lambda f, d: one_layer().save(f / "model.keras"), "not a network of this"),
        ]
    ]
    + [
        (f"{script} {name}", f"{script} --output-dir F", change, 1, word)
        for script in ("evaluate.py", "visualize.py")
        for name, change, word in [
            (
                "where its data are gone",
                lambda f, d: lose_data(f, None),
                "name the data to use with --data",
            ),
            ("where its data changed", lose_data, "now not there or changed"),
            ("without settings", lambda f, d: (f / "settings.json").unlink(), "it has no settings.json"),
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
DAMAGED = "settings.json: damaged"
STRANGE = (
    [
        (
            f"{script} {name}",
            f"{script} --output-dir F{resume}",
            lambda f, d, wrong=wrong: edit_settings(f, **wrong),
            1,
            DAMAGED,
        )
        for script, resume in (("train.py", " --resume"), ("evaluate.py", ""))
        for name, wrong in WRONG_SETTINGS.items()
    ]
    + [
        (f"epoch {value!r:.9}", RESUME, lambda f, d, value=value: stamp(f, epoch=value), 1, "of which run and epoch")
        for value in WRONG_EPOCHS
    ]
    + [
        ("settings nested", RESUME, lambda f, d: (f / "settings.json").write_text(NESTED), 1, DAMAGED),
        ("settings are a list", RESUME, lambda f, d: (f / "settings.json").write_text("[1]"), 1, DAMAGED),
        ("stamp nested", RESUME, lambda f, d: comment(f, NESTED[:60_000].encode()), 1, "of which run and epoch"),
        (
            "stamp with strange weights",
            "visualize.py --output-dir F",
            lambda f, d: stamp(f, loss_weights=["a"]),
            1,
            "of which run",
        ),
        (
            "history without a column",
            "visualize.py --output-dir F",
            lambda f, d: rename_column(f),
            1,
            "history.csv: damaged",
        ),
    ]
    + [
        (
            f"data are {path}",
            f"{script} --output-dir F",
            lambda f, d, path=path: edit_settings(f, data=path),
            1,
            "not there",
        )
        for script in ("evaluate.py", "train.py --resume")
        for path in ("/dev/zero", "/")
    ]
    + [
        ("data are a pipe", NEW, lambda f, d: (d.unlink(), os.mkfifo(d)), 1, "no data file"),
        (
            "its data are a pipe",
            "evaluate.py --output-dir F",
            lambda f, d: (os.mkfifo(f / "p"), edit_settings(f, data=str(f / "p"))),
            1,
            "not there",
        ),
        ("weights that overflow", "train.py --loss-weights 1e308 1e308", None, 2, "--loss-weights"),
    ]
)
CASES = COMMAND_LINES + DATA_FILES + RUNS + MODELS + STRANGE


def one_layer():
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])


def run_here(capfd, monkeypatch, command):
    """Run a script as if it were started anew, but in this process, where Keras is loaded already."""
    script, *arguments = command
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
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


def test_bad_input_in_a_process_of_its_own(tmp_path):
    """The same from outside, where nothing is loaded yet: what a user sees."""
    done = run_script("evaluate.py", "--output-dir", tmp_path / "new", "--data=none.npz")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
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
                load_data(path)
            except InputError:
                refused += 1
    assert refused >= 100


def test_settings_from_strangers_are_checked(finished, tmp_path, capfd, monkeypatch):
    """A number in settings.json that the command line would refuse is refused."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "settings.json").read_text())
    for wrong in (
        {"epochs": -5},
        {"seed": 2**32},
        {"loss_weights": [1, -1]},
        {"loss_weights": [1]},
        {"precision": "--overwrite"},
        {"limit": 0},
    ):
        edit_settings(tmp_path, **(settings | wrong))
        status, stderr = run_here(capfd, monkeypatch, ["train.py", "--resume", "--output-dir", str(tmp_path)])
        assert (status, stderr.count("\n")) == (1, 1)
        assert "settings.json" in stderr
