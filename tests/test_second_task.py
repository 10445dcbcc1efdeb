"""The study of the second task: its plan, its records, and that nothing that happens to a worker changes a result."""

import os
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, STUDY, files, metrics, run_script

from data import InputError, batches, epoch_order, output_shapes
from evaluate import evaluate
from experiments.second_task import (
    COLUMNS,
    few_images,
    is_done,
    key_of,
    name_of,
    new_run,
    plan,
    read_runs,
    train_in_folder,
    train_in_memory,
    write_runs,
)
from model import prepare_model
from run_folder import read_history, read_settings
from train import reseed

SCRIPT = "experiments/second_task.py"


def test_the_plan_is_the_study():
    runs = plan()
    count = {part: sum(run["part"] == part for run in runs) for part in "ABCD"}
    assert count == {"A": 2 * 5, "B": 4 * 16, "C": 2 * 5, "D": 2}
    assert len({name_of(run) for run in runs}) == len(runs) == len({key_of(run) for run in runs})
    steps = {part: {run["steps"] for run in runs if run["part"] == part} for part in "ABCD"}
    assert steps == {"A": {20 * 1875}, "B": {1250}, "C": {1875}, "D": {5 * 1875}}
    for first, second in zip(runs[:10:2], runs[1:10:2]):  # a pair stands together
        assert first["seed"] == second["seed"]
        assert (first["autoencoder_weight"], second["autoencoder_weight"]) == (0.1, 0)
        assert first["classification_weight"] == second["classification_weight"] == 0.9
    weights = {(run["classification_weight"], run["autoencoder_weight"]) for run in runs if run["part"] == "B"}
    assert weights == {(0.9, 0), (0.9, 0.1), (0.9, 1), (0.9, 10)}
    assert [run["measured_at"] for run in runs if run["part"] == "C"] == 10 * [(0, 25, 50, 100, 200, 400, 800, 1875)]


def test_few_images_are_drawn_anew_for_each_seed_and_fill_their_batches(mnist):
    (images, labels), _ = mnist
    drawn = {}
    for seed in (0, 1):
        x, y = few_images(images, labels, 1000, 1250, seed)
        assert (len(x), len(y)) == (40_000, 40_000)
        assert all(np.array_equal(x[start : start + 1000], x[:1000]) for start in range(0, 40_000, 1000))
        assert np.array_equal(y[:1000], y[-1000:])
        drawn[seed] = {image.tobytes() for image in x[:1000]}
        assert len(drawn[seed]) == 1000
        assert labels[(images == x[7]).all(axis=(1, 2))].tolist() == [y[7]]
    assert len(drawn[0] & drawn[1]) < 100
    with pytest.raises(ValueError, match="no whole number"):
        few_images(images, labels, 1000, 1251, 0)


def test_a_run_in_memory_is_what_its_settings_say(mnist):
    """Held against steps that are made here one by one: the weights of the losses, and when it is measured."""
    (images, labels), (test_images, test_labels) = mnist
    test_set = test_images[:64], test_labels[:64]
    run = new_run("C", (0.9, 10), 3, images=96, steps=3, measured_at=(0, 1, 3))
    measured = {steps: metrics for steps, metrics, _ in train_in_memory(run, (images[:96], labels[:96]), test_set)}

    keras.utils.set_random_seed(3)
    network = prepare_model()
    network.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=["categorical_crossentropy", "mean_squared_error"],
        loss_weights=[0.9, 10],
    )
    expected = {0: evaluate(network, *test_set)}
    reseed(network, 3, 0)
    for step, (x, targets) in enumerate(
        batches(images[:96], labels[:96], 32, epoch_order(96, 3, 0), output_shapes(network)), start=1
    ):
        network.train_on_batch(x, list(targets))
        expected[step] = evaluate(network, *test_set)
    assert measured == {steps: expected[steps] for steps in (0, 1, 3)}


def test_a_run_in_a_folder_is_what_its_settings_say(small_data, tmp_path):
    run = new_run("A", (0.9, 10), 3, images=320, epochs=1, steps=10)
    train_in_folder(run, small_data, tmp_path)
    settings = read_settings(tmp_path)
    assert (settings["loss_weights"], settings["seed"], settings["epochs"]) == ([0.9, 10], 3, 1)


def row(seed, **more):
    """A row as a run leaves it."""
    found = dict.fromkeys(COLUMNS, 1) | {"part": "B", "seed": seed, "classification_loss": 0.5, "machine": "a, b"}
    return {**found, "versions": "keras 3", "weights_sha256": "ab", **more}


def test_records_are_read_as_they_were_written(tmp_path):
    rows = [row(2), row(1), row(3, part="A")]
    write_runs(tmp_path / "runs.csv", rows)
    assert read_runs(tmp_path / "runs.csv") == [rows[2], rows[1], rows[0]]
    assert read_runs(tmp_path / "none.csv") == []
    assert is_done(row(2), rows)
    assert not is_done(row(4), rows)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: text.replace("part,", "part;", 1),
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text.replace(",0.5,", ",half,", 1),
        lambda text: text + "B,1\n",
        lambda text: text + '"',
    ],
    ids=["cut", "empty", "header", "a run twice", "no number", "short row", "open quote"],
)
def test_damaged_records_are_refused_and_left_as_they_are(damage, tmp_path):
    path = tmp_path / "runs.csv"
    write_runs(path, [row(1), row(2)])
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"runs.csv: damaged"):
        read_runs(path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_damaged_records_end_the_program_in_one_line(tmp_path):
    (tmp_path / "runs.csv").write_text("part\n")
    done = run_script(SCRIPT, "--quick", "--output-dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"second_task.py: .*runs.csv: damaged.*\n", done.stderr)
    assert (tmp_path / "runs.csv").read_text() == "part\n"


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer(tmp_path):
    done = run_script(SCRIPT, "--quick", "--scheduler", "tcp://127.0.0.1:1", "--output-dir", tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"second_task.py: no Dask scheduler answers at tcp://127.0.0.1:1 .*\n", done.stderr)
    assert not (tmp_path / "runs.csv").exists()


def start_study(folder, *options):
    """Start a study in a process group of its own, as a terminal would."""
    command = [sys.executable, ROOT / SCRIPT, "--quick", "--output-dir", folder, "--threads", "1", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), start_new_session=True, **pipes)


def processes_of_runs(folder):
    """The processes that do runs of a study now: [(process, the worker that started it)]."""
    table = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in table.splitlines() if " --run " in line and str(folder) in line]
    return [(int(pid), int(parent)) for pid, parent, _ in lines]


def wait_for(condition, seconds=30):
    """Wait until a condition holds; it must within so many seconds."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_stopped_and_gone_on_with(tmp_path):
    """Ctrl-C, to all processes of the terminal, in the second of two runs: the first is kept, and not run again."""
    study = start_study(tmp_path, "--part", "D")
    lines = [study.stdout.readline() for _ in range(2)]
    assert lines[1].startswith("D-0.1-0.9-seed0: ")
    wait_for(lambda: processes_of_runs(tmp_path))
    os.killpg(study.pid, signal.SIGINT)
    output, stderr = study.communicate(timeout=60)
    assert study.returncode == 130
    assert stderr == "second_task.py: stopped\n"
    assert output.startswith("1 of 2 runs are in runs.csv; go on with: ")
    kept = read_runs(tmp_path / "runs.csv")
    assert [(one["part"], one["filters"]) for one in kept] == [("D", 64)]
    wait_for(lambda: not processes_of_runs(tmp_path))

    study = start_study(tmp_path, "--part", "D")
    output, stderr = study.communicate(timeout=120)
    assert (study.returncode, stderr) == (0, "")
    assert output.startswith("2 runs, 1 of them done before\nD-0.9-0.1-filters8-seed0: ")
    rows = read_runs(tmp_path / "runs.csv")
    assert [one["filters"] for one in rows] == [64, 8]
    assert kept[0] in rows
    sizes = [(tmp_path / "D" / name_of(one) / "model.keras").stat().st_size for one in rows]
    assert sizes[1] < sizes[0] / 5  # 8 filters make a smaller network


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path):
    """Two workers, one of them killed while it works, and one that nobody disturbs: the same runs, the same weights."""
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    study = start_study(quiet, "--part", "A", "--part", "B")
    assert study.communicate(timeout=400)[1] == ""
    study = start_study(killed, "--part", "A", "--part", "B", "--workers", "2")
    study.stdout.readline()
    wait_for(lambda: len(processes_of_runs(killed)) == 2)
    process, worker = processes_of_runs(killed)[0]
    time.sleep(3)
    os.kill(worker, signal.SIGKILL)
    output, stderr = study.communicate(timeout=400)
    assert (study.returncode, stderr) == (0, ""), output
    assert process not in {pid for pid, _ in processes_of_runs(killed)}

    def weights(folder):
        return [(key_of(one), one["weights_sha256"]) for one in read_runs(folder / "runs.csv")]

    assert weights(killed) == weights(quiet)
    assert len(weights(quiet)) == 12
    measured = [{name for name in files(folder) if name.name == "metrics.json"} for folder in (quiet, killed)]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 4


def test_every_planned_run_is_recorded():
    """Each pair is of one machine, but for the three seeds that were recorded before there was a study."""
    runs, rows = plan(), read_runs(STUDY / "runs.csv")
    expected = [{**run, "steps": steps} for run in runs for steps in run.get("measured_at", [run["steps"]])]
    assert {key_of(one) for one in rows} == {key_of(one) for one in expected}
    mixed = {("A", 0), ("A", 1), ("A", 2)}
    for part, seed in {(run["part"], run["seed"]) for run in runs if run["part"] != "D"} - mixed:
        compared = [one for one in rows if (one["part"], one["seed"]) == (part, seed)]
        assert len({(one["machine"], one["threads"], one["versions"]) for one in compared}) == 1


def test_recorded_long_runs_have_their_history_and_metrics():
    rows = [one for one in read_runs(STUDY / "runs.csv") if one["part"] == "A"]
    assert {path.name for path in (STUDY / "A").iterdir()} == {name_of(one) for one in rows}
    for one in rows:
        folder = STUDY / "A" / name_of(one)
        measured = metrics(folder)
        last = read_history(folder, 20)[-1]
        assert (one["errors"], one["test_images"]) == (measured["errors"], measured["images"])
        for loss in ("classification_loss", "autoencoder_loss"):
            assert one[loss] == measured[loss] == pytest.approx(last[f"val_{loss}"], abs=2e-5)
        assert measured["accuracy"] == pytest.approx(last["val_classification_accuracy"], abs=1e-6)
