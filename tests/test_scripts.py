"""The scripts as their user runs them: train, evaluate, visualize, on a small cut of the real MNIST."""

import ast
import csv
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib.image
import numpy as np
import pytest
from conftest import REFERENCE, ROOT, call, copy_run, metrics, rows_of, succeed

from data import DATA, load_data, to_images
from evaluate import evaluate, run_network
from support.drawing import save_figure
from support.run_folder import load_network, read_history
from train import LOSS_WEIGHTS, new_model, train
from visualize import columns, draw_confusion_matrix, draw_training

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

PICTURES = {  # height and width in pixels
    "reconstructions/00.png": (224, 464),
    "reconstructions/01.png": (224, 464),
    "reconstructions/02.png": (224, 464),
    "reconstructions.png": (840, 768),
    "training.png": (588, 1440),
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
    assert f"Next: {sys.executable} evaluate.py --output-dir {folder}\n" in output
    assert "Test accuracy" in call("evaluate.py", *common)
    call("visualize.py", *common)
    return folder


def test_run_is_recorded(trained):
    settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))
    assert (settings["epochs"], settings["batch_size"], settings["seed"], settings["limit"]) == (2, 32, 0, 96)
    assert settings["loss_weights"] == [0.9, 0.1]
    assert settings["starts"][0]["keras"] == keras.__version__
    assert settings["starts"][0]["numpy"] == np.__version__
    rows = list(csv.DictReader((trained / "history.csv").open(newline="", encoding="utf-8")))
    assert set(rows[0]) == set(
        csv.DictReader((REFERENCE / "history.csv").open(newline="", encoding="utf-8")).fieldnames
    )
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())


def test_saved_network_is_small_and_whole(trained):
    assert 27_560_000 < (trained / "model.keras").stat().st_size < 28_000_000  # 3,445,323 float32 and their momenta
    model = keras.saving.load_model(trained / "model.keras")
    assert model.count_params() == 3_445_323
    assert model.optimizer.iterations == 6


def test_metrics_are_what_the_network_does(trained, small_data):
    images, labels = load_data(small_data)[1]
    model = load_network(trained)[0]
    probabilities = run_network(model, images)["classification"]
    measured = metrics(trained)
    data = {"data": str(small_data), "data_sha256": hashlib.sha256(small_data.read_bytes()).hexdigest()}
    assert measured == {**evaluate(model, images, labels), "epoch": 2, **data}
    errors = int((probabilities.argmax(axis=1) != labels).sum())
    assert (measured["errors"], measured["images"]) == (errors, 80)
    assert measured["accuracy"] == pytest.approx(1 - errors / 80)
    right = sum(measured["accuracy_of_class"][str(digit)] * (labels == digit).sum() for digit in range(10))
    assert right == pytest.approx(80 - errors, abs=1e-3)


def test_pictures_are_there_and_of_the_right_size(trained):
    for name, size in PICTURES.items():
        assert matplotlib.image.imread(trained / name).shape[:2] == size, name
    assert not (trained / "reconstructions" / "03.png").exists()
    if shutil.which("dot"):
        assert matplotlib.image.imread(trained / "model.png").shape[0] > 1000


def test_pairs_show_the_original_left_and_the_reconstruction_right(trained, small_data):
    images, _ = load_data(small_data)[1]
    reconstructions = run_network(load_network(trained)[0], images)["autoencoder"]
    for number in range(3):
        pair = matplotlib.image.imread(trained / "reconstructions" / f"{number:02d}.png")
        greys = np.rint(pair[..., 0] * 255)
        assert np.array_equal(pair[..., 0], pair[..., 2])
        assert np.array_equal(greys[::8, :224:8], images[number])  # full ink is white, 255
        assert np.array_equal(greys[7::8, 240::8], to_images(reconstructions)[number])
        assert (greys[:, 224:240] == 255).all()  # the gap


def test_two_runs_side_by_side(trained, tmp_path):
    """The results of both in a line each, and another training.png."""
    copy_run(trained, tmp_path)
    output = call("visualize.py", "--output-dir", tmp_path, "--beside", REFERENCE)
    found = re.findall(r"(?m)^(.+): epoch (\d+), test accuracy ([\d.]+)%, cross-entropy", output)
    last = read_history(trained)[-1]
    own = str(tmp_path), "2", f"{100 * last['val_classification_accuracy']:.2f}"
    assert found == [own, (str(REFERENCE), "20", "99.16")]
    assert (tmp_path / "training.png").read_bytes() != (trained / "training.png").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="made for Linux")
def test_another_run_with_a_strange_name_and_without_a_decoder(trained, tmp_path):
    """A byte that is no letter is shown as such; of a loss that the other history lacks nothing is said."""
    other = tmp_path / os.fsdecode(b"be\xff")
    other.mkdir()
    copy_run(REFERENCE, other)
    rows = list(csv.reader((REFERENCE / "history.csv").open(newline="", encoding="utf-8")))
    keep = [number for number, name in enumerate(rows[0]) if "autoencoder" not in name]
    with open(other / "history.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[row[number] for number in keep] for row in rows])
    copy_run(trained, tmp_path)
    output = call("visualize.py", "--output-dir", tmp_path, "--beside", other)
    assert re.search(r"(?m)/be\\udcff: epoch 20, test accuracy 99.16%, cross-entropy \d\.\d+$", output)


def test_without_graphviz_all_else_is_drawn_and_the_same_to_the_byte(trained, tmp_path, monkeypatch):
    copy_run(trained, tmp_path)
    (tmp_path / "no-programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    output = call("visualize.py", "--output-dir", tmp_path)
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
    assert len(read_history(tmp_path)) == 2
    assert [
        backend in one for one in json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))["starts"]
    ] == [True, True]


def test_importing_is_silent_and_ruff_passes():
    code = "import support.quiet, train, evaluate, visualize, predict"
    ruff = [sys.executable, "-m", "ruff"]
    for command in (
        [sys.executable, "-W", "error", "-c", code],
        [*ruff, "check", "-q", "--no-cache"],
        [*ruff, "format", "--check", "-q", "--no-cache"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(os.name == "nt", reason="the shell here is sh")
@pytest.mark.parametrize("streams", ["", "2>&-"])
def test_an_import_that_ends_the_process_is_named(streams, tmp_path):
    """As on a processor that TensorFlow was not built for: abort()."""
    (tmp_path / "keras.py").write_text("import os\nos.write(2, b'no AVX here\\n')\nos.abort()\n", encoding="utf-8")
    command = shlex.join([sys.executable, str(ROOT / "evaluate.py"), "--help"])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        ["sh", "-c", f"exec {command} {streams}"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == -signal.SIGABRT
    assert ("keras.py" in done.stderr) == (not streams)


FLOORS = [{"support"}, {"model", "data"}, {"train", "evaluate"}, {"visualize", "predict"}, {"experiments"}]
FLOORS += [{"benchmarks", "demo"}]


def test_imports_go_down():
    """From each floor to lower ones, or within a folder."""
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    paths = [path.relative_to(ROOT) for name in floor_of for path in (ROOT / name).rglob("*.py")]
    paths += [Path(f"{name}.py") for name in floor_of if not (ROOT / name).is_dir()]
    assert len(paths) > 30
    for path in paths:
        nodes = list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
        named = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        own = path.parts[0].removesuffix(".py")
        wrong = [name for name in named & {*floor_of} - {own} if floor_of[name] >= floor_of[own]]
        assert not wrong, path


def test_in_a_notebook_the_network_is_a_plain_import():
    """It changes neither the environment nor how errors end, and Keras says what it says."""
    code = """
import os, signal, sys
before = dict(os.environ), sys.excepthook, signal.getsignal(signal.SIGINT), sys.stderr
import matplotlib
matplotlib.rcParams["figure.dpi"] = 300
import train, evaluate, visualize, predict
now = {name: value for name, value in os.environ.items() if name in before[0] or name.startswith(("MPL", "TF_"))}
assert before == (now, sys.excepthook, signal.getsignal(signal.SIGINT), sys.stderr)
assert matplotlib.rcParams["figure.dpi"] == 300
assert "support.quiet" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_line_reaches_the_training(small_data, tmp_path):
    """What train.py makes of its flags is what the functions make of the same values, bit for bit."""
    flags = "--epochs 1 --seed 3 --batch-size 6 --limit 12 --loss-weights 0.4 0.6 --precision mixed_bfloat16".split()
    call("train.py", *flags, "--output-dir", tmp_path, "--data", small_data)
    (images, labels), test_set, _ = load_data(small_data)
    model = new_model(3, {"classification": 0.4, "autoencoder": 0.6}, "mixed_bfloat16")
    (row,) = rows_of(train(model, (images[:12], labels[:12]), test_set, epochs=1, batch_size=6, seed=3))
    for one, other in zip(load_network(tmp_path)[0].get_weights(), model.get_weights()):
        assert np.array_equal(one, other)
    recorded = read_history(tmp_path)[0]
    for name in row:
        assert recorded[name] == pytest.approx(row[name], rel=1e-5), name


def test_the_first_line_says_what_it_trains_on(trained, small_data):
    """Shown by a run that has nothing left to do, so that it says little else."""
    output = call("train.py", "--resume", "--output-dir", trained)
    settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))
    device = settings["starts"][-1]["device"]
    assert output.startswith(f"Training on {device}, 96 images: 2 of 2 epochs done\n")
    if keras.backend.backend() == "tensorflow" and not tf.config.list_physical_devices("GPU"):
        assert re.match(r"\d+ cores? of \S", device)


def test_other_data_only_by_name_and_then_it_is_said(trained, small_data, tmp_path):
    copy_run(trained, tmp_path)
    with np.load(small_data) as file:
        np.savez(tmp_path / "other.npz", **{name: array[:50] for name, array in file.items()})
    own = call("evaluate.py", "--output-dir", tmp_path)
    assert "epoch 2, on 80 test images" in own
    assert "Not its own data" not in own
    named = call("evaluate.py", "--output-dir", tmp_path, "--data", tmp_path / "other.npz")
    assert f"visualize.py --output-dir {tmp_path} --data {tmp_path / 'other.npz'}\n" in named
    assert "epoch 2, on 50 test images" in named
    assert "\nNot its own data: this network was trained on others\n" in named
    assert metrics(tmp_path)["data"] == str(tmp_path / "other.npz")


@pytest.mark.slow
def test_the_articles_figure_is_none_for_a_network_trained_on_others(trained, tmp_path):
    copy_run(trained, tmp_path)
    named = call("evaluate.py", "--output-dir", tmp_path, "--data", DATA)
    assert "on 10000 test images of mnist.npz" in named
    assert "99.33" not in named
    assert "article_accuracy" not in metrics(tmp_path)


def test_pictures_are_of_the_networks_epoch(trained, small_data, tmp_path):
    """The history may be an epoch ahead of the network."""
    for name in ("model.keras", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    history = (trained / "history.csv").read_text(encoding="utf-8")
    (tmp_path / "history.csv").write_text(
        history + history.splitlines()[-1].replace("2,", "3,", 1) + "\n", encoding="utf-8"
    )
    call("visualize.py", "--output-dir", tmp_path)
    images, labels = load_data(small_data)[1]
    probabilities = run_network(load_network(trained)[0], images)["classification"]
    save_figure(
        draw_training(columns(read_history(trained)), LOSS_WEIGHTS, "Seed 0, batches of 32, float32"),
        tmp_path / "expected.png",
    )
    assert (tmp_path / "training.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    save_figure(
        draw_confusion_matrix(labels, probabilities.argmax(axis=1), list("0123456789")), tmp_path / "expected.png"
    )
    assert (tmp_path / "confusion_matrix.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_fewer_pairs_leave_none_of_an_earlier_drawing(trained, tmp_path):
    copy_run(trained, tmp_path)
    pairs = tmp_path / "reconstructions"
    call("visualize.py", "--output-dir", tmp_path, "--count", 6)
    (pairs / "mine.png").touch()
    call("visualize.py", "--output-dir", tmp_path, "--count", 2)
    assert sorted(path.name for path in pairs.iterdir()) == ["00.png", "01.png", "mine.png"]


@pytest.mark.skipif(os.name == "nt", reason="the shell here is sh")
@pytest.mark.slow
@pytest.mark.parametrize("tail", ["| head -1", "<&- >&- 2>&-"])
def test_nobody_reads_on_and_closed_streams(tail, trained, tmp_path):
    copy_run(trained, tmp_path)
    command = shlex.join([sys.executable, str(ROOT / "evaluate.py"), "--output-dir", str(tmp_path)])
    done = subprocess.run(["sh", "-c", f"{command} {tail}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "metrics.json").exists()
    assert done.stdout.startswith("Measured") == (tail == "| head -1")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the shell here is sh")
def test_the_next_command_is_one_that_the_shell_takes(trained, tmp_path):
    folder = tmp_path / "it's a $HOME; folder"
    folder.mkdir()
    copy_run(trained, folder)
    command = re.search(r"Next: (.* visualize.py .*)", call("evaluate.py", "--output-dir", folder)).group(1)
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "training.png").exists()
