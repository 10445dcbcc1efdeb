"""Bad input: one line that says what is wrong and what to do, the right exit status, and every file as it was.

What a function refuses is shown on the function. The cases at the end go through the scripts, as their user does.
"""

import json
import os
import runpy
import shutil
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, call, files, make_pipe, run_script

import evaluate
import train
import visualize
from data import DATA, load_data
from support.errors import InputError
from support.record import save_epoch
from support.run_folder import MODEL, load_network, read_history, read_settings, read_stamp

EPOCHS, LIMIT = 2, 64


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """The folder of a finished run with results in it, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    call("train.py", "--output-dir", folder, "--data", small_data, "--epochs", EPOCHS, "--limit", LIMIT)
    (folder / "reconstructions").mkdir()
    for result in ("metrics.json", "training.png", "reconstructions/00.png"):
        (folder / result).touch()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


# The command line: what the parsers refuse, with status 2.
FLAGS = {
    "no epochs": (train, "--epochs 0", "--epochs"),
    "half an epoch": (train, "--epochs 0.5", "--epochs"),
    "negative batch": (train, "--batch-size -1", "--batch-size"),
    "no images": (train, "--limit 0", "--limit"),
    "negative seed": (train, "--seed -1", "--seed"),
    "seed too large": (train, "--seed 4294967296", "--seed"),
    "word as seed": (train, "--seed one", "--seed"),
    "one weight": (train, "--loss-weights 1", "--loss-weights"),
    "negative weight": (train, "--loss-weights 1 -1", "--loss-weights"),
    "infinite weight": (train, "--loss-weights inf 1", "--loss-weights"),
    "weights that overflow": (train, "--loss-weights 1e308 1e308", "--loss-weights"),
    "two weights of 0": (train, "--loss-weights 0 0", "--loss-weights: with 0 everywhere"),
    "unknown precision": (train, "--precision float64", "--precision"),
    "both ways on": (train, "--resume --overwrite", "--overwrite"),
    "unknown option": (train, "--learning-rate 1", "--learning-rate"),
    "no pairs": (visualize, "--count 0", "--count"),
    "unknown option of evaluate": (evaluate, "--fast", "--fast"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name, capsys):
    script, flags, said = FLAGS[name]
    with pytest.raises(SystemExit) as stop:
        script.main(flags.split())
    assert stop.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert said in stderr
    assert stderr.endswith("(see --help)\n")


def test_a_line_break_in_an_argument_is_one_line(capsys):
    with pytest.raises(SystemExit):
        train.main(["--seed", "1\n2"])
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "invalid int value: '1\\n2'" in stderr
    with pytest.raises(SystemExit):
        train.main(["--outputs\nx"])
    assert capsys.readouterr().err.count("\n") == 1


# Data: arrays in the place of those of a file with 320 training and 80 test images, and what is said of them.
ARRAYS = {
    "an array less": ({"y_test": None}, "y_test"),
    "other sizes to test": ({"x_test": np.zeros((80, 32, 32), np.uint8)}, "make them alike"),
    "colours to test": ({"x_test": np.zeros((80, 28, 28, 3), np.uint8)}, "make them alike"),
    "two channels": ({"x_test": np.zeros((80, 28, 28, 2), np.uint8)}, "(n, height, width, 3)"),
    "a side of 30": ({"x_train": np.zeros((320, 28, 30), np.uint8)}, "scale it to 28 or 32"),
    "images as floats": ({"x_train": np.zeros((320, 28, 28), np.float32)}, "as uint8"),
    "images as integers": ({"x_train": np.zeros((320, 28, 28), np.int64)}, "uint8"),
    "fewer labels than images": ({"y_train": np.zeros(319, np.uint8)}, "y_train has the shape (319,)"),
    "a gap in the labels": ({"y_train": np.full(320, 11)}, "no image has the label 10"),
    "a huge label": ({"y_train": np.full(320, 10**12)}, "no image has the label 10"),
    "label -1": ({"y_test": np.full(80, -1)}, "holds -1: number the classes from 0"),
    "labels as floats": ({"y_test": np.zeros(80)}, "as integers"),
    "labels in a column": ({"y_test": np.zeros((80, 1), np.int64)}, "one number for each of the 80 images"),
    "one class": ({"y_train": np.zeros(320, np.uint8), "y_test": np.zeros(80, np.uint8)}, "at least two"),
    "too few names": ({"class_names": ["a", "b"]}, "2 class names for 10 classes"),
    "a name twice": ({"class_names": 10 * ["a"]}, "each its own"),
    "a pickle": ({"y_train": np.array([{}] * 320)}, "not an .npz"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, small_data, tmp_path):
    changes, said = ARRAYS[name]
    change(shutil.copy(small_data, tmp_path), **changes)
    with pytest.raises(InputError) as refused:
        load_data(tmp_path / small_data.name)
    assert str(refused.value).startswith(str(tmp_path / small_data.name))
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"x_train", b"", b"PK\x03\x04"], ids=["text", "nothing", "the begin of a zip"])
def test_a_file_that_is_none(content, tmp_path):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"not an .npz file"):
        load_data(tmp_path / "data.npz")


@pytest.mark.parametrize("make", [os.mkdir, make_pipe, lambda path: None], ids=["folder", "pipe", "nothing"])
def test_a_path_without_a_file(make, tmp_path):
    make(tmp_path / "data.npz")
    with pytest.raises(InputError, match="no data file"):
        load_data(tmp_path / "data.npz")


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


# settings.json: values in the place of what train.py wrote; LOST takes a name out.
LOST = "lost"
SETTINGS = {
    "epochs": (LOST, None, "a word", 2.0, [2], -5),
    "starts": (LOST, None, [], [1], 5, "ab", {}),
    "loss_weights": (["a", "b"], 1, {"a": 1, "b": 2}, [1, -1]),
    "seed": (LOST, None, "0; rm", [], 2**32),
    "data": (None, 5, ["x"]),
    "limit": (0,),
}
NESTED = "[" * 200_000


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values])
def test_settings(name, value, run):
    edit_settings(run, **{name: value})
    with pytest.raises(InputError, match=r"settings.json: damaged, .*: replace it with --overwrite"):
        read_settings(run)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"epochs": 2', NESTED], ids=["", "{}", "[1]", "cut", "nested"])
def test_settings_that_are_none(text, run):
    (run / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"settings.json: damaged"):
        read_settings(run)


# The stamp in model.keras: what it may say that train.py never wrote.
STAMPS = ["", "[1]", NESTED[:60_000], '{"epoch": 2}']
EPOCHS_OF_STAMPS = (None, 0, "2", [2], 2.0, 1e99, float("nan"), -1)


@pytest.mark.parametrize("text", STAMPS, ids=["nothing", "a list", "nested", "no weights"])
def test_stamps(text, run):
    comment(run, text.encode())
    assert read_stamp(run / MODEL) == {}
    with pytest.raises(InputError, match="does not say of which run and epoch it is"):
        load_network(run)


@pytest.mark.parametrize("changes", [{"epoch": epoch} for epoch in EPOCHS_OF_STAMPS] + [{"loss_weights": ["a"]}])
def test_stamps_of_strange_values(changes, run):
    whole = read_stamp(run / MODEL)
    assert whole["epoch"] == EPOCHS
    comment(run, json.dumps(whole | changes).encode())
    assert read_stamp(run / MODEL) == {}


def network(code=False):
    """A network with the article's output names, which may hold code."""
    image = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Lambda(lambda values: 1 - values)(image) if code else image
    classification = keras.layers.Dense(10, name="classification")(keras.layers.Flatten()(x))
    autoencoder = keras.layers.Conv2D(1, 3, padding="same", name="autoencoder")(x)
    return keras.Model(image, [classification, autoencoder])


def one_layer():
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])


def test_networks(run, tmp_path):
    whole = (run / MODEL).read_bytes()
    for content in (whole[:-2000], b"PK", b""):
        (run / MODEL).write_bytes(content)
        with pytest.raises(InputError, match="not a readable Keras model"):
            load_network(run)
    network(code=True).save(run / MODEL)
    with pytest.raises(InputError, match=r"not a readable Keras model.*Lambda"):
        load_network(run)
    one_layer().save(run / MODEL)
    with pytest.raises(InputError, match="not a network of this project"):
        load_network(run)
    (run / MODEL).unlink()
    with pytest.raises(InputError, match=r"no epoch of the run in .* has ended yet: go on with train.py --resume"):
        load_network(run)
    with pytest.raises(InputError, match=r"train.py begins one, --output-dir outputs/reference has the recorded one"):
        load_network(tmp_path / "none")


# Through the scripts. {run} and {data} in a command line stand for a copy of a finished run and of its data.
CASES = {}


def case(command, said, status=1):
    """Make a case of a function that changes a finished run's folder or a copy of its data before the command."""

    def keep(prepare):
        CASES[prepare.__name__.replace("_", " ")] = command, said, status, prepare
        return prepare

    return keep


RESUME = "train.py --output-dir {run} --data {data} --resume --epochs 3"
ANEW = "train.py --output-dir {run} --data {data}"


@case("train.py --output-dir {run}/new --data {data}", "no data file")
def no_data(run, data):
    data.unlink()


@case("evaluate.py --output-dir {run} --data {data}", "it was trained on")
def other_images(run, data):
    change(data, x_train=np.zeros((320, 28, 28, 3), np.uint8), x_test=np.zeros((80, 28, 28, 3), np.uint8))


@case("visualize.py --output-dir {run} --beside {run}/none", "no run in")
def no_run_beside(run, data):
    pass


@case("visualize.py --output-dir {run} --data {data}", "go up to 10")
def more_classes(run, data):
    change(data, y_test=np.full(80, 10))


@case(ANEW, "holds a run: go on with --resume, and more --epochs")
def a_run_is_there(run, data):
    pass


@case("train.py --output-dir {run}/settings.json/new --data {data}", "settings.json")
def a_folder_below_a_file(run, data):
    pass


@case("train.py --output-dir {run}/settings.json --data {data}", "is there and no folder")
def the_folder_is_a_file(run, data):
    pass


@case("train.py --output-dir {run}/new --data {data} --resume", "no run in")
def nothing_to_resume(run, data):
    pass


@case(f"{RESUME} --seed 1", "seed is 0 in this run, not 1")
def another_seed(run, data):
    pass


@case(f"{RESUME} --batch-size 16", "batch_size is 32 in this run, not 16")
def another_batch_size(run, data):
    pass


@case(f"{RESUME} --precision mixed_bfloat16", "precision is float32 in this run, not mixed_bfloat16")
def another_precision(run, data):
    pass


@case(RESUME, "learning_rate is 0.1 in this run, not 0.0")
def another_learning_rate(run, data):
    edit_settings(run, learning_rate=0.1)


@case(f"{RESUME} --limit 65", "limit is 64 in this run, not 65")
def another_limit(run, data):
    pass


@case(f"{RESUME} --limit 64", "limit is not set in this run, not 64")
def a_limit_where_there_was_none(run, data):
    edit_settings(run, limit=None)


@case(f"{RESUME} --loss-weights 0.5 0.5", "loss_weights")
def other_weights(run, data):
    pass


@case(RESUME, "backend is theano in this run")
def another_backend(run, data):
    edit_settings(run, backend="theano")


@case(RESUME, "optimizer is Adam in this run")
def another_optimizer(run, data):
    edit_settings(run, optimizer="Adam")


@case(RESUME, "not on")
def other_data(run, data):
    change(data, y_train=np.zeros(320, np.uint8))


@case("train.py --output-dir {run} --resume --data {mnist}", "small.npz, not on mnist.npz")
def the_projects_mnist(run, data):
    pass


@case("train.py --output-dir {run} --resume", "now not there or changed: name the data to use with --data")
def its_data_changed(run, data):
    change(data, y_train=np.zeros(320, np.uint8))
    edit_settings(run, data=str(data))


@case("evaluate.py --output-dir {run}", "now not there or changed")
def its_data_are_a_pipe(run, data):
    make_pipe(run / "pipe")
    edit_settings(run, data=str(run / "pipe"))


@case("evaluate.py --output-dir {run}", "now not there or changed")
def its_data_are_endless(run, data):
    edit_settings(run, data="/dev/zero")


@case(ANEW, "holds a run: go on with --resume")
def no_settings(run, data):
    (run / "settings.json").unlink()


@case(RESUME, "see its settings.json")
def a_strange_precision(run, data):
    edit_settings(run, precision="--overwrite")


@case(RESUME, "see its settings.json")
def one_loss_weight(run, data):
    edit_settings(run, loss_weights=[1])


@case(f"{ANEW} --resume --epochs 1", "--epochs 1")
def fewer_epochs(run, data):
    pass


@case(RESUME, "history.csv: damaged")
def no_history(run, data):
    (run / "history.csv").unlink()


@case("visualize.py --output-dir {run}", "history.csv: damaged")
def a_history_without_a_column(run, data):
    path = run / "history.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("val_autoencoder_loss", "lost"), encoding="utf-8")


@case(RESUME, "model.keras is missing; --overwrite starts")
def no_network(run, data):
    (run / MODEL).unlink()


@case(RESUME, "model.keras is of another run")
def a_network_of_another_seed(run, data):
    comment(run, json.dumps(read_stamp(run / MODEL) | {"seed": 1}).encode())


@case(RESUME, "has another network; has model.py")
def a_network_of_other_layers(run, data):
    stamp = read_stamp(run / MODEL)
    network().save(run / MODEL)
    comment(run, json.dumps(stamp).encode())


@case(RESUME, "holds no optimizer, it can only be measured")
def no_optimizer(run, data):
    model = keras.saving.load_model(run / MODEL, compile=False)
    save_epoch(run, model, read_settings(run), read_history(run))


@case(RESUME, "holds no optimizer, it can only be measured")
def the_optimizer_of_another_program(run, data):
    model = keras.saving.load_model(run / MODEL, compile=False)
    model.compile(optimizer="sgd", loss="mse")
    save_epoch(run, model, read_settings(run), read_history(run))


@pytest.mark.parametrize("name", CASES)
def test_through_the_scripts(name, run, small_data, tmp_path, capfd, monkeypatch):
    command, said, status, prepare = CASES[name]
    data = shutil.copy(small_data, tmp_path / "data.npz")
    prepare(run, data)
    before = files(tmp_path)
    command = command.format(run=run, data=data, mnist=DATA).split()
    found, stderr = run_here(capfd, monkeypatch, command)
    assert found == status, stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"{command[0]}: ")
    assert said in stderr
    assert files(tmp_path) == before


def test_bad_input_in_a_process_of_its_own(tmp_path):
    """The same from outside, where nothing is loaded yet: what a user sees."""
    done = run_script("evaluate.py", "--output-dir", tmp_path / "new", "--data=none.npz")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "Traceback" not in done.stderr
    assert not files(tmp_path)


def test_a_backend_that_does_not_exist(finished):
    done = run_script("evaluate.py", "--output-dir", finished, KERAS_BACKEND="jax_is_not_there")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "set KERAS_BACKEND to one of tensorflow, jax, torch" in done.stderr


def run_here(capfd, monkeypatch, command):
    """Run a script as if it were started anew, but in this process, where Keras is loaded already."""
    script, *arguments = command
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return stop.value.code, capfd.readouterr().err


def comment(folder, text):
    """Make a run's network say something else of its epoch and run."""
    with zipfile.ZipFile(folder / MODEL, "a") as file:
        file.comment = text


def change(path, **arrays):
    """Change arrays of an .npz file; None takes one out."""
    with np.load(path) as file:
        changed = {name: array for name, array in ({**file} | arrays).items() if array is not None}
    np.savez(path, **changed)


def edit_settings(folder, **settings):
    """Change what settings.json says; LOST takes a name out."""
    path = folder / "settings.json"
    changed = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps({name: value for name, value in changed.items() if value != LOST}), encoding="utf-8")
