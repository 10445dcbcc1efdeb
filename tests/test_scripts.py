"""The scripts as their user runs them: train, evaluate, visualize, on a small cut of the real MNIST."""

import csv
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import keras
import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT, run_script, succeed

from data import load_mnist
from evaluate import evaluate
from model import load_model, predict
from run_folder import COLUMNS, read_history
from visualize import draw_sheet, to_greys

PICTURES = {  # height and width in pixels
    "reconstructions/00.png": (224, 448),
    "reconstructions/01.png": (224, 448),
    "reconstructions/02.png": (224, 448),
    "reconstructions.png": (552, 1200),
    "training.png": (480, 1440),
    "confusion_matrix.png": (768, 840),
    "mistakes.png": (768, 1440),
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
    metrics = json.loads((trained / "metrics.json").read_text())
    network = {"epoch": 2, "run": json.loads((trained / "settings.json").read_text())["run"]}
    data = {"data": str(small_data), "data_sha256": hashlib.sha256(small_data.read_bytes()).hexdigest()}
    assert metrics == {**evaluate(model, images, labels), **network, **data}
    errors = int((probabilities.argmax(axis=1) != labels).sum())
    assert (metrics["errors"], metrics["images"]) == (errors, 200)
    assert metrics["accuracy"] == pytest.approx(1 - errors / 200)
    right = sum(metrics["accuracy_of_class"][str(digit)] * (labels == digit).sum() for digit in range(10))
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
        assert np.array_equal(greys[7::8, 224::8], to_greys(reconstructions)[number])


def test_sheet_shows_each_digit_above_its_reconstruction(small_data, tmp_path):
    """Drawn with reconstructions that are all white, every second row of the sheet is white, and only that."""
    images, labels = load_mnist(small_data)[1]
    draw_sheet(images, labels, np.full_like(images, 255), tmp_path / "sheet.png")
    sheet = matplotlib.image.imread(tmp_path / "sheet.png")[..., 0]
    inside = np.flatnonzero((sheet < 0.1).sum(axis=1) > 400)  # rows of pixels that are mostly black paper
    gaps = np.flatnonzero(np.diff(inside) > 50)
    assert len(gaps) == 1  # one white band between the two rows of originals
    columns = np.flatnonzero((sheet[inside] < 0.1).any(axis=0))
    assert columns[-1] - columns[0] > 1000  # and they go from side to side


def test_ink_does_not_overflow():
    greys = to_greys(np.array([0, 0.5, 1], np.float32).reshape(3, 1, 1, 1))
    assert greys.ravel().tolist() == [255, 128, 0]


def test_without_graphviz_all_else_is_drawn_and_the_same_to_the_byte(trained, small_data, tmp_path):
    for name in ("model.keras", "history.csv"):
        shutil.copy(trained / name, tmp_path)
    (tmp_path / "no-programs").mkdir()
    output = succeed("visualize.py", "--output-dir", tmp_path, "--data", small_data, PATH=str(tmp_path / "no-programs"))
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
    succeed("evaluate.py", *common, KERAS_BACKEND=backend)
    assert len(read_history(tmp_path / "history.csv")) == 2


def test_importing_is_silent_and_ruff_passes():
    code = "import cli, data, model, dropout, run_folder, train, evaluate, visualize"
    for command in ([sys.executable, "-W", "error", "-c", code], [sys.executable, "-m", "ruff", "check", "--quiet"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_is_there_at_once():
    for script in ("train.py", "evaluate.py", "visualize.py"):
        assert "--output-dir" in run_script(script, "--help").stdout
