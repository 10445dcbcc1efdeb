"""The scripts as their user runs them: train, evaluate, visualize, on a small cut of the real MNIST."""

import csv
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import keras
import matplotlib.image
import numpy as np
import pytest
from conftest import REFERENCE, ROOT, call, metrics, run_script, succeed

from data import DATA, load_mnist
from evaluate import evaluate
from model import load_model, predict
from run_folder import COLUMNS, read_history
from train import new_model, train
from visualize import draw_confusion_matrix, draw_training, save, to_greys

PICTURES = {  # height and width in pixels
    "reconstructions/00.png": (224, 464),
    "reconstructions/01.png": (224, 464),
    "reconstructions/02.png": (224, 464),
    "reconstructions.png": (672, 1200),
    "training.png": (552, 1440),
    "confusion_matrix.png": (768, 840),
    "mistakes.png": (840, 1440),
}


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """The folder of a finished run of two epochs on 96 images, evaluated and drawn."""
    folder = tmp_path_factory.mktemp("run")
    common = "--output-dir", folder, "--data", small_data
    output = succeed("train.py", *common, "--epochs", 2, "--limit", 96)
    assert len(re.findall(r"^epoch \d/2: ", output, re.MULTILINE)) == 2
    assert f"python evaluate.py --output-dir {folder}\n" in output
    assert "Test accuracy" in succeed("evaluate.py", *common)
    succeed("visualize.py", *common)
    return folder


def test_run_is_recorded(trained):
    settings = json.loads((trained / "settings.json").read_text())
    assert (settings["epochs"], settings["batch_size"], settings["seed"], settings["limit"]) == (2, 32, 0, 96)
    assert settings["loss_weights"] == [0.9, 0.1]
    assert settings["starts"][0]["keras"] == keras.__version__
    assert settings["starts"][0]["numpy"] == np.__version__
    rows = list(csv.DictReader((trained / "history.csv").open(newline="")))
    assert [tuple(row) for row in rows] == [COLUMNS, COLUMNS]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())


def test_saved_network_is_small_and_whole(trained):
    assert 13_780_000 < (trained / "model.keras").stat().st_size < 14_200_000  # 3,445,323 float32 and little else
    model = load_model(trained / "model.keras")
    assert model.count_params() == 3_445_323
    assert not model.compiled


def test_metrics_are_what_the_network_does(trained, small_data):
    images, labels = load_mnist(small_data)[1]
    model = load_model(trained / "model.keras")
    probabilities, _ = predict(model, images)
    measured = metrics(trained)
    network = {"epoch": 2, "run": json.loads((trained / "settings.json").read_text())["run"]}
    data = {"data": str(small_data), "data_sha256": hashlib.sha256(small_data.read_bytes()).hexdigest()}
    assert measured == {**evaluate(model, images, labels), **network, **data}
    errors = int((probabilities.argmax(axis=1) != labels).sum())
    assert (measured["errors"], measured["images"]) == (errors, 200)
    assert measured["accuracy"] == pytest.approx(1 - errors / 200)
    right = sum(measured["accuracy_of_class"][str(digit)] * (labels == digit).sum() for digit in range(10))
    assert right == pytest.approx(200 - errors, abs=1e-3)


def test_pictures_are_there_and_of_the_right_size(trained):
    for name, size in PICTURES.items():
        assert matplotlib.image.imread(trained / name).shape[:2] == size, name
    assert not (trained / "reconstructions" / "03.png").exists()
    if shutil.which("dot"):
        assert matplotlib.image.imread(trained / "model.png").shape[0] > 1000


def test_pairs_show_the_original_left_and_the_reconstruction_right(trained, small_data):
    images, _ = load_mnist(small_data)[1]
    _, reconstructions = predict(load_model(trained / "model.keras"), images)
    for number in range(3):
        pair = matplotlib.image.imread(trained / "reconstructions" / f"{number:02d}.png")
        greys = np.rint(pair[..., 0] * 255)
        assert np.array_equal(pair[..., 0], pair[..., 2])
        assert np.array_equal(greys[::8, :224:8], images[number])  # full ink is white, 255
        assert np.array_equal(greys[7::8, 240::8], to_greys(reconstructions)[number])
        assert (greys[:, 224:240] == 255).all()  # the gap


def test_without_graphviz_all_else_is_drawn_and_the_same_to_the_byte(trained, small_data, tmp_path):
    for name in ("model.keras", "history.csv", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    (tmp_path / "no-programs").mkdir()
    output = succeed("visualize.py", "--output-dir", tmp_path, PATH=str(tmp_path / "no-programs"))
    assert sum("apt install graphviz" in line for line in output.splitlines()) == 1
    assert not (tmp_path / "model.png").exists()
    for name in PICTURES:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_and_resume(backend, small_data, tmp_path):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    common = "--output-dir", tmp_path, "--data", small_data
    succeed("train.py", *common, "--epochs", 1, "--limit", 64, KERAS_BACKEND=backend)
    succeed("train.py", *common, "--epochs", 2, "--resume", KERAS_BACKEND=backend)
    assert "Test accuracy" in succeed("evaluate.py", *common, KERAS_BACKEND=backend)
    assert len(read_history(tmp_path / "history.csv")) == 2
    assert [backend in one for one in json.loads((tmp_path / "settings.json").read_text())["starts"]] == [True, True]


def test_importing_is_silent_and_ruff_passes():
    code = "import cli, data, model, dropout, run_folder, train, evaluate, visualize"
    for command in ([sys.executable, "-W", "error", "-c", code], [sys.executable, "-m", "ruff", "check", "--quiet"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "visualize.py", "benchmarks/throughput.py"])
@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--nonsense"], 2)])
def test_help_and_a_mistyped_flag_are_answered_without_keras(script, arguments, status):
    code = f"""
import runpy, sys
sys.argv = {[script, *arguments]}
try:
    runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
except SystemExit as stop:
    assert stop.code == {status}, stop.code
assert not {{"keras", "tensorflow", "jax", "torch"}} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("--output-dir" in done.stdout) == (status == 0)


def test_the_benchmark_takes_no_data():
    assert "unrecognized arguments: --data" in run_script("benchmarks/throughput.py", "--data", "x.npz").stderr


def test_the_command_line_reaches_the_training(small_data, tmp_path):
    """What train.py makes of its flags is what the functions make of the same values, bit for bit."""
    flags = "--epochs 1 --seed 3 --batch-size 24 --limit 48 --loss-weights 0.4 0.6".split()
    succeed("train.py", *flags, "--output-dir", tmp_path, "--data", small_data)
    (images, labels), test_set = load_mnist(small_data)
    model = new_model(seed=3, loss_weights=(0.4, 0.6))
    history = train(model, (images[:48], labels[:48]), test_set, epochs=1, batch_size=24, seed=3)
    for one, other in zip(load_model(tmp_path / "model.keras").get_weights(), model.get_weights()):
        assert np.array_equal(one, other)
    recorded = read_history(tmp_path / "history.csv")[0]
    for name in COLUMNS[:-1]:
        assert recorded[name] == pytest.approx(history[0][name], rel=1e-5), name


def test_the_first_line_says_what_it_trains_on(trained, small_data):
    """Shown by a run that has nothing left to do, so that it says little else."""
    output = call("train.py", "--resume", "--output-dir", trained)
    settings = json.loads((trained / "settings.json").read_text())
    devices = settings["starts"][-1]["devices"]
    assert output.startswith(f"Training on {' and '.join(devices)}, 96 images: 2 of 2 epochs done\n")
    assert all(devices)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        assert len(devices) == max(len(gpus), 1)
        assert bool(gpus) != bool(re.match(r"\d+ cores? of \S", devices[0]))


def test_other_data_only_by_name_and_then_it_is_said(trained, mnist, tmp_path):
    """MNIST's own test images, named, for a run that was trained on others: the article's figure is none for it."""
    for name in ("model.keras", "history.csv", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    own = call("evaluate.py", "--output-dir", tmp_path)
    assert "epoch 2, on 200 test images" in own
    assert "99.33" not in own
    assert "this run was trained on" not in own
    text = (tmp_path / "metrics.json").read_text()
    assert "article" not in text
    assert "digit" not in text

    named = call("evaluate.py", "--output-dir", tmp_path, "--data", DATA)
    assert "on 10000 test images of mnist.npz" in named
    assert "99.33" not in named
    assert re.search(r"^Not its own data: this run was trained on /.*small\.npz$", named, re.MULTILINE)
    measured = metrics(tmp_path)
    assert measured["data"] == "mnist.npz"
    assert "article_accuracy" not in measured
    assert set(measured["accuracy_of_digit"]) == set("0123456789")


def test_the_article_is_named_for_the_recorded_run(tmp_path):
    """Measured where nothing else changes: a copy of the recorded folder, on the data that it was trained on."""
    for name in ("model.keras", "history.csv", "settings.json"):
        shutil.copy(REFERENCE / name, tmp_path)
    output = call("evaluate.py", "--output-dir", tmp_path)
    assert output.startswith("Measured             after epoch 20, on 10000 test images of mnist.npz\n")
    assert "The article's        99.33%" in output
    found, before = metrics(tmp_path), metrics(REFERENCE)
    assert found["errors"] == pytest.approx(before["errors"], abs=1)
    assert list(found) == list(before)


def test_pictures_are_of_the_networks_epoch_and_of_classes_not_digits(trained, small_data, tmp_path):
    """The history may be an epoch ahead of the network; other data than MNIST have classes."""
    for name in ("model.keras", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    history = (trained / "history.csv").read_text()
    (tmp_path / "history.csv").write_text(history + history.splitlines()[-1].replace("2,", "3,", 1) + "\n")
    call("visualize.py", "--output-dir", tmp_path)
    images, labels = load_mnist(small_data)[1]
    probabilities, _ = predict(load_model(trained / "model.keras"), images)
    save(draw_training(read_history(trained / "history.csv"), (0.9, 0.1)), tmp_path / "expected.png")
    assert (tmp_path / "training.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    save(draw_confusion_matrix(labels, probabilities.argmax(axis=1), "class"), tmp_path / "expected.png")
    assert (tmp_path / "confusion_matrix.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_fewer_pairs_leave_none_of_an_earlier_drawing(trained, tmp_path):
    for name in ("model.keras", "history.csv", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    pairs = tmp_path / "reconstructions"
    call("visualize.py", "--output-dir", tmp_path, "--count", 6)
    (pairs / "mine.png").touch()
    call("visualize.py", "--output-dir", tmp_path, "--count", 2)
    assert sorted(path.name for path in pairs.iterdir()) == ["00.png", "01.png", "mine.png"]


@pytest.mark.skipif(os.name == "nt", reason="the shell here is sh")
def test_nobody_reads_on_and_closed_streams(trained, tmp_path):
    for name in ("model.keras", "history.csv", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    command = shlex.join([sys.executable, str(ROOT / "evaluate.py"), "--output-dir", str(tmp_path)])
    for tail in ("| head -1", "2>&-", "<&- >&- 2>&-"):
        (tmp_path / "metrics.json").unlink(missing_ok=True)
        done = subprocess.run(["sh", "-c", f"{command} {tail}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), tail
        assert (tmp_path / "metrics.json").exists(), tail
        assert done.stdout.startswith("Measured") == (">&-" not in tail.replace("2>&-", "")), tail


@pytest.mark.skipif(os.name == "nt", reason="the shell here is sh")
def test_the_next_command_is_one_that_the_shell_takes(trained, tmp_path):
    folder = tmp_path / "it's a $HOME; folder"
    folder.mkdir()
    for name in ("model.keras", "history.csv", "settings.json"):
        shutil.copy(trained / name, folder)
    command = re.search(r"Next: python (visualize.py .*)", succeed("evaluate.py", "--output-dir", folder)).group(1)
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} {command}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "training.png").exists()
