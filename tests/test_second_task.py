"""The study of the second task: its plan, its runs, its records, and that nothing that happens changes a result."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import psutil
import pytest
from conftest import ROOT, STUDY, metrics, run_script
from scipy.special import log_softmax, softmax

from data import batches, epoch_order, make_targets, output_shapes, preprocess
from evaluate import evaluate, run_network
from experiments import jobs
from experiments.second_task.runs import (
    ALONE,
    BINS,
    COLUMNS,
    LARGE,
    SETTINGS,
    calibrate,
    calibration_error,
    choose_images,
    do_run,
    is_done,
    measure_network,
    name_of,
    new_network,
    new_run,
    plan,
    read_runs,
    train_and_measure,
    write_runs,
)
from model import prepare_model
from support.backend import reseed
from support.errors import InputError
from support.run_folder import read_history
from tests.miniature import in_miniature
from train import new_model, train


def of_part(part):
    return [task for task in plan() if task[0]["part"] == part]


def keys(runs):
    return [tuple(run[name] for name in SETTINGS) for run in runs]


def test_the_plan_is_the_study():
    """A task has the arms of one seed, and differs in nothing else but whether there are images without labels."""
    count = {part: (len(of_part(part)), len(of_part(part)[0])) for part in ("A", "B", "C2", "F")}
    assert count == {"A": (5, 2), "B": (16, 4), "C2": (16, 2), "F": (32, 2)}
    groups = {}
    for task in of_part("E"):
        arms = tuple((run["classification_weight"], run["autoencoder_weight"], run["unlabelled"]) for run in task)
        groups.setdefault((task[0]["images"], task[0]["filters"], arms), []).append(task[0]["seed"])
    labelled = (0.9, 0, 0), (0.9, 10, 0)
    with_others = (0.9, 1, 96), (0.9, 10, 96)
    assert groups == {
        (100, 8, (*labelled, with_others[1])): [*range(16)],
        (100, 64, (*labelled, *with_others)): [*range(16)],
        (1000, 64, (*labelled, *with_others)): [*range(16)],
    }
    assert {run["steps"] for task in of_part("B") + of_part("E") for run in task} == {1250}
    assert of_part("C2")[0][0]["measured_at"] == [25, 50, 100, 200, 400, 800]
    assert [task[0]["seed"] for task in of_part("F")] == [*range(16, 48)]
    assert all(run["measured_at"] == [*range(10, 251, 10)] for task in of_part("F") for run in task)
    assert all(run["share_of_data"] == (None, 2000) for task in of_part("F") for run in task)
    runs = [run for task in plan() for run in task]
    assert len({*keys(runs)}) == len({name_of(run) for run in runs}) == len(runs)
    for task in plan():
        assert len({(run["part"], run["seed"], run["images"], run["steps"], run["filters"]) for run in task}) == 1


def test_few_images_are_drawn_anew_for_each_seed_and_fill_their_batches(mnist):
    (_, labels), _ = mnist
    drawn = {}
    for seed in (0, 1):
        indices, held_out, steps_an_epoch = choose_images(new_run("B", ALONE, seed, 1000, 1250), labels)
        assert (indices.shape, len(held_out), steps_an_epoch) == ((1250, 32), 0, 1250)
        found, counts = np.unique(indices, return_counts=True)
        assert (len(found), {*counts}) == (1000, {40})
        drawn[seed] = {*found}
    assert len(drawn[0] & drawn[1]) < 100


def test_all_images_are_in_the_order_of_every_epoch(mnist):
    indices, _, steps_an_epoch = choose_images(new_run("A", ALONE, 3, 60_000, 2 * 1875), mnist[0][1])
    assert steps_an_epoch == 1875
    for epoch in (0, 1):
        of_epoch = indices[1875 * epoch : 1875 * (epoch + 1)]
        assert np.array_equal(of_epoch.ravel(), epoch_order(60_000, 3, epoch))


def test_images_without_labels_are_others(mnist):
    """100 labels, 10 of each digit; the 96 beside them and those held out are all others, and no image is both."""
    labels = mnist[0][1]
    task = next(task for task in of_part("E") if (task[0]["images"], task[0]["seed"]) == (100, 5))
    chosen = [choose_images(run, labels)[:2] for run in task]
    for indices, held_out in chosen:
        assert np.array_equal(indices[:, :32], chosen[0][0])  # the labelled are those of the arm without others
        assert np.array_equal(held_out, chosen[0][1])
    own, held_out, others = (np.unique(part) for part in (chosen[0][0], chosen[0][1], chosen[-1][0][:, 32:]))
    assert np.bincount(labels[own]).tolist() == [10] * 10
    assert (len(held_out), len(others)) == (5000, 60_000 - 5000 - 100)
    assert len({*own, *held_out, *others}) == 60_000


def test_a_run_is_what_its_settings_say(mnist):
    """Held against steps that are made here one by one: the weights of the losses, and when it is measured."""
    (images, labels), (test_images, test_labels) = mnist
    train_set, test_set = (images[:96], labels[:96]), (test_images[:64], test_labels[:64])
    run = new_run("C", LARGE, 3, 96, 3, measured_at=[0, 1, 3], filters=8)
    measured = {steps: found for steps, found, *_ in train_and_measure(run, train_set, test_set)}

    keras.utils.set_random_seed(3)
    network = prepare_model(filters=8)
    network.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=["categorical_crossentropy", "mean_squared_error"],
        loss_weights=[0.9, 10],
    )
    expected = {0: evaluate(network, *test_set)}
    reseed(network, 3, 0)
    for step, (x, targets) in enumerate(
        batches(*train_set, 32, epoch_order(96, 3, 0), output_shapes(network)), start=1
    ):
        network.train_on_batch(x, targets)
        expected[step] = evaluate(network, *test_set)
    assert measured == {steps: expected[steps] for steps in (0, 1, 3)}


def test_epochs_are_those_of_train(mnist):
    """Two epochs, bit for bit, and the classifier alone has the weights that it has beside a decoder of weight 0."""
    (images, labels), (test_images, test_labels) = mnist
    train_set, test_set = (images[:64], labels[:64]), (test_images[:32], test_labels[:32])
    *_, (_, found, _, network) = train_and_measure(new_run("A", ALONE, 3, 64, 4, filters=8), train_set, test_set)
    expected = new_model(3, {"classification": 0.9, "autoencoder": 0}, filters=8)
    train(expected, train_set, test_set, epochs=2, seed=3)
    assert "autoencoder_loss" not in found
    assert network.output_names == ["classification"]
    weights = {weight.path: weight.numpy() for weight in expected.weights}
    assert len(network.weights) == len(weights) - 4
    for weight in network.weights:
        assert np.array_equal(weight.numpy(), weights[weight.path]), weight.path


def test_images_without_labels_count_in_the_reconstruction_alone(mnist):
    """The first step's loss is that of the labelled 32 and of all 128, from the answers before it, Dropout included."""
    (images, labels), test_set = mnist
    run = new_run("E", LARGE, 1, 20, 1, unlabelled=96, filters=8)
    test_set = [part[:32] for part in test_set]
    *_, (_, _, _, trained) = train_and_measure(run, (images[:640], labels[:640]), test_set)
    wrong = np.where(np.isin(np.arange(640), choose_images(run, labels[:640])[0][0, 32:]), 0, labels[:640])
    *_, (_, _, _, misled) = train_and_measure(run, (images[:640], wrong), test_set)
    assert (wrong != labels[:640]).any()

    network = new_network(run)
    index = choose_images(run, labels[:640])[0][0]
    x = preprocess(images[index])
    truth = make_targets(x, labels[index], 10)["classification"]
    answers = []
    for count in (128, 32):  # and the masks of the labelled do not depend on what stands after them
        reseed(network, 1, 0)
        answers.append([np.array(output) for output in network(x[:count], training=True)])
    (probabilities, reconstructions), (of_labelled, _) = answers
    assert np.allclose(probabilities[:32], of_labelled, atol=1e-5)
    cross_entropy = -np.log((probabilities * truth).sum(axis=1)[:32]).mean()
    loss = 0.9 * cross_entropy + 10 * np.square(reconstructions - x).mean()
    assert float(trained.get_metrics_result()["loss"]) == pytest.approx(loss, rel=1e-4)
    for weight, other in zip(trained.get_weights(), misled.get_weights()):
        assert np.array_equal(weight, other)


def test_calibration():
    """Right answers as often as a network says, then logits twice as large: the temperature is 2, and mends it."""
    random = np.random.default_rng(0)
    logits = log_softmax(random.normal(0, 2, (20_000, 10)), axis=1)
    labels = (softmax(logits, axis=1).cumsum(axis=1) > random.random((20_000, 1))).argmax(axis=1)
    found = calibrate(2 * logits[:10_000], labels[:10_000], 2 * logits[10_000:], labels[10_000:])
    assert found["temperature"] == pytest.approx(2, rel=0.05)
    assert found["fitted_loss"] == pytest.approx(-logits[np.arange(10_000), labels[:10_000]].mean(), rel=0.01)
    assert found["calibration_error"] > 0.1
    assert found["fitted_error"] < 0.02
    # By hand: three answers of 0.9, one of them right, and one of 0.6, which is right.
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert calibration_error(logits, np.array([0, 1, 1, 1])) == pytest.approx((3 * 0.9 - 1 + 1 - 0.6) / 4)
    found = calibrate(logits, np.array([0, 1, 1, 1]), logits, np.array([0, 1, 1, 1]))
    assert found["true_probability"] == pytest.approx((0.9 + 0.1 + 0.1 + 0.6) / 4)
    assert found["loss_when_wrong"] == pytest.approx(-np.log(0.1))


def test_a_row_says_what_it_is_of():
    row, *more = do_run(in_miniature(of_part("E")[0])[0], threads=2)
    assert not more
    assert (row["part"], row["filters"], row["images"], row["test_images"], row["steps"]) == ("E", 8, 20, 200, 1)
    assert set(COLUMNS) - set(row) == {"autoencoder_loss"}  # a classifier alone draws nothing
    assert re.fullmatch("[0-9a-f]{12}(-dirty)?|", row["commit"])
    other = do_run({**in_miniature(of_part("E")[0])[0], "filters": 4}, threads=2)[0]
    assert {len(one[name]) for one in (row, other) for name in ("network_sha256", "weights_sha256")} == {64}
    assert row["network_sha256"] != other["network_sha256"]


def test_only_the_last_row_has_the_weights():
    run = {**in_miniature(of_part("C2")[0])[0], "filters": 4, "steps": 2, "measured_at": [1, 2]}
    first, last = do_run(run, threads=1)
    assert (first["steps"], first["weights_sha256"]) == (1, "")
    assert (last["steps"], len(last["weights_sha256"])) == (2, 64)


def test_temperatures_are_fitted_on_the_images_held_out(mnist):
    """Not on the test images: there it is another temperature, and only there it is the best one."""
    (images, labels), test_set = mnist
    network = new_network(new_run("E", ALONE, 1, 100, 1, filters=4))
    few, held = [part[:60] for part in test_set], (images[:60], (labels[:60] + 1) % 10)
    found = measure_network(network, few, held)
    logits = [np.log(run_network(network, one)["classification"], dtype=np.float64) for one in (few[0], held[0])]
    assert found["temperature"] == pytest.approx(calibrate(logits[0], few[1], logits[1], held[1])["temperature"])
    assert found["temperature"] != pytest.approx(calibrate(logits[0], few[1], logits[0], few[1])["temperature"])


def test_bins_and_the_order_of_images_without_labels(mnist):
    assert BINS == 15  # Guo and others 2017
    labels = mnist[0][1]
    for seed in (5, 6):
        run = next(task[-1] for task in of_part("E") if (task[0]["images"], task[0]["seed"]) == (100, seed))
        indices, held_out, _ = choose_images(run, labels)
        expected = np.random.default_rng([seed, 3]).permutation(np.setdiff1d(np.arange(60_000), indices[:, :32]))
        assert np.array_equal(held_out, expected[:5000])
        assert np.array_equal(indices[:10, 32:].ravel(), expected[5000:5960])


def test_a_job_gets_the_threads_of_its_row(monkeypatch, capsys, tmp_path):
    started = []

    def note(command, env, **more):
        started.append([env[name] for name in jobs.THREADS])
        monkeypatch.setattr(os, "environ", env)
        jobs.answer(command[command.index("--job") + 1], lambda job, threads: [job | {"threads": threads}])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(jobs.subprocess, "run", note)
    assert jobs.do_task("a.module", [{"seed": 1}, {"seed": 2}], 3, tmp_path) == [
        {"seed": 1, "threads": 3},
        {"seed": 2, "threads": 3},
    ]
    assert started == [["3", "3"]] * 2


def test_records_are_written_as_they_were_read(tmp_path):
    rows = read_runs(STUDY / "runs.csv")
    write_runs(tmp_path / "runs.csv", rows.sample(frac=1, random_state=0))
    assert (tmp_path / "runs.csv").read_bytes() == (STUDY / "runs.csv").read_bytes()
    assert read_runs(tmp_path / "none.csv").empty
    assert is_done(of_part("B")[3], rows)
    assert not is_done(of_part("B")[3], rows[rows["autoencoder_weight"] < 10])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: text.replace("part,", "part;", 1),
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text.replace(",10000,0.", ",10000,half.", 1),
        lambda text: text + "B,1\n",
        lambda text: text + '"',
    ],
    ids=["cut", "empty", "header", "a run twice", "no number", "short row", "open quote"],
)
def test_damaged_records_are_refused_and_left_as_they_are(damage, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(damage((STUDY / "runs.csv").read_text(encoding="utf-8")), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"runs.csv: damaged"):
        read_runs(path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_damaged_records_end_the_program_in_one_line(tmp_path):
    (tmp_path / "runs.csv").write_text("part\n", encoding="utf-8")
    done = run_script("experiments.second_task.runs", "--output-dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"runs.py: .*runs.csv: damaged.*\n", done.stderr)
    assert (tmp_path / "runs.csv").read_text(encoding="utf-8") == "part\n"


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer(tmp_path):
    flags = "--scheduler", "tcp://127.0.0.1:1", "--output-dir", tmp_path
    done = run_script("experiments.second_task.runs", *flags)
    assert done.returncode == 1
    assert re.fullmatch(r"runs.py: no Dask scheduler answers at tcp://127.0.0.1:1 .*\n", done.stderr)
    assert not (tmp_path / "runs.csv").exists()


def start_study(folder, *options, root=ROOT, **more):
    """Start the study in miniature in a process group of its own, as a terminal would."""
    command = "tests.miniature", "--output-dir", str(folder), "--threads", "1", *options
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": root}
    return subprocess.Popen([sys.executable, "-m", *command], start_new_session=True, **pipes, **more)


def finish(study):
    """Wait for a study that must succeed; returns what it printed."""
    output, stderr = study.communicate(timeout=600)
    assert (study.returncode, stderr) == (0, ""), output + stderr
    return output


def processes_of_runs(folder):
    """The processes that do runs of a study now: [(process, the worker that started it)]."""
    found = [process.info for process in psutil.process_iter(["pid", "ppid", "cmdline"])]
    lines = [(one["pid"], one["ppid"], " ".join(one["cmdline"] or [])) for one in found]
    return [(pid, parent) for pid, parent, line in lines if "--job" in line and str(folder) in line]


def wait_for(condition, seconds=60):
    """Wait until a condition holds; it must within so many seconds."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.1)


def weights(folder):
    return {key: row["weights_sha256"] for key, row in results(folder).items()}


def results(folder):
    """The rows of a study's runs.csv, by key."""
    rows = read_runs(folder / "runs.csv").astype(object)
    rows = rows.where(rows.notna(), None).to_dict("records")
    return dict(zip(keys(rows), rows))


@pytest.fixture
def cluster(tmp_path):
    """The address of a Dask scheduler with two workers, each a process of its own."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as scheduler:
        address = next(re.findall(r"tcp://127.0.0.1:\d+", line) for line in scheduler.stderr if "Scheduler at" in line)[
            0
        ]
        worker = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--nthreads",
            "1",
            "--memory-limit",
            "0",
        ]
        quiet = {"stderr": subprocess.DEVNULL, "cwd": tmp_path, "start_new_session": True}
        workers = [subprocess.Popen([*worker, "--no-dashboard"], **quiet) for _ in range(2)]
        yield address
        for process in (*workers, scheduler):
            process.terminate()
        for process in workers:
            process.wait()


@pytest.mark.slow
def test_two_studies_on_one_scheduler(cluster, tmp_path):
    """One is of a copy in which two numbers were changed: its FILTERS do not count, its LEARNING_RATE does."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "docs"))
    for name, before, after in (
        ("model.py", "\nFILTERS = 64", "\nFILTERS = 8"),
        ("train.py", "\nLEARNING_RATE = 0.01", "\nLEARNING_RATE = 0.02"),
    ):
        text = (copy / name).read_text(encoding="utf-8")
        assert before in text
        (copy / name).write_text(text.replace(before, after), encoding="utf-8")
    options = ("--part", "B", "--scheduler", cluster)
    studies = [start_study(tmp_path / "one", *options), start_study(tmp_path / "two", *options, root=copy)]
    for study in studies:
        finish(study)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert (len(one), one.keys()) == (8, two.keys())
    for key, row in one.items():
        assert row["filters"] == 64
        assert row["network_sha256"] == two[key]["network_sha256"]
        assert row["weights_sha256"] != two[key]["weights_sha256"]

    finish(start_study(tmp_path / "alone", "--part", "B"))
    assert weights(tmp_path / "alone") == weights(tmp_path / "one")


@pytest.mark.slow
def test_ctrl_c_ends_what_goes_on_at_a_scheduler(cluster, tmp_path):
    """The workers live on, without a run of this study; and the same command goes on with it."""
    study = start_study(tmp_path, "--part", "B", "--scheduler", cluster)
    wait_for(lambda: len(processes_of_runs(tmp_path)) == 2)
    os.killpg(study.pid, signal.SIGINT)
    output, stderr = study.communicate(timeout=60)
    assert (study.returncode, stderr) == (130, "miniature.py: stopped\n")
    assert "What is done is in runs.csv; the same command goes on" in output
    wait_for(lambda: not processes_of_runs(tmp_path), seconds=5)
    time.sleep(3)
    assert not processes_of_runs(tmp_path)
    output = finish(start_study(tmp_path, "--part", "B", "--scheduler", cluster))
    assert output.startswith("2 tasks, 0 of them done before\n")
    assert len(weights(tmp_path)) == 8


@pytest.mark.slow
def test_stopped_and_gone_on_with(tmp_path):
    """Ctrl-C, to all processes of the terminal, in the second of two tasks: the first is kept, and not done again."""
    study = start_study(tmp_path, "--part", "C2")
    wait_for(lambda: (tmp_path / "runs.csv").exists() and processes_of_runs(tmp_path))
    os.killpg(study.pid, signal.SIGINT)
    output, stderr = study.communicate(timeout=60)
    assert (study.returncode, stderr) == (130, "miniature.py: stopped\n")
    assert "\n1 of 2 tasks done\nWhat is done is in runs.csv; " in output
    kept = results(tmp_path)
    assert len(kept) == 2
    wait_for(lambda: not processes_of_runs(tmp_path))
    output = finish(start_study(tmp_path, "--part", "C2"))
    assert output.startswith("2 tasks, 1 of them done before\n")
    rows = results(tmp_path)
    assert {row["seed"] for row in rows.values()} == {0, 1}
    assert (len(rows), kept.items() <= rows.items()) == (4, True)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path):
    """Two workers, one of them killed while it works, and one that nobody disturbs: the same runs, the same weights."""
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    finish(start_study(quiet, "--part", "B", "--part", "F"))
    study = start_study(killed, "--part", "B", "--part", "F", "--workers", "2")
    wait_for(lambda: len(processes_of_runs(killed)) == 2)
    process, worker = processes_of_runs(killed)[0]
    time.sleep(3)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: process not in {pid for pid, _ in processes_of_runs(killed)})
    finish(study)
    assert weights(killed) == weights(quiet)
    assert len(weights(quiet)) == 2 * 4 + 4 * 2  # four seeds of part F


@pytest.mark.slow
def test_a_full_disk_is_no_failed_run(tmp_path):
    """No file may grow beyond 2,500 bytes, which the rows of two tasks need: the first one's are kept."""
    resource = pytest.importorskip("resource")  # not on Windows
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))}
    study = start_study(tmp_path, "--part", "B", **limit)
    output, stderr = study.communicate(timeout=300)
    assert study.returncode == 1
    assert re.fullmatch(r"miniature.py: .*File too large\n", stderr)
    assert "\nfailed: " not in output
    assert "What is done is in runs.csv; the same command goes on" in output
    assert len(results(tmp_path)) == 4


def test_every_planned_run_is_recorded():
    """Each pair is of one machine, but for the three seeds that were recorded before there was a study."""
    rows = read_runs(STUDY / "runs.csv")
    planned = [{**run, "steps": steps} for task in plan() for run in task for steps in run["measured_at"]]
    recorded = keys(rows.to_dict("records"))
    assert len({*recorded}) == len(recorded)
    assert {key for key in recorded if key[0] != "C"} == {*keys(planned)}
    assert len([key for key in recorded if key[0] == "C"]) == 5 * 2 * 8  # which nothing needs any more
    mixed = {("A", 0), ("A", 1), ("A", 2)}
    for (part, seed, *_), compared in rows.groupby(["part", "seed", "images", "filters"]):
        if (part, seed) not in mixed:
            assert len(compared[["machine", "threads", "versions"]].drop_duplicates()) == 1


def test_recorded_long_runs_have_their_history_and_metrics():
    """Part A was made by train.py: its rows are what is in the folders."""
    rows = read_runs(STUDY / "runs.csv").query("part == 'A'")
    assert len(rows) == 10 * 20
    for run, of_run in rows.groupby(["autoencoder_weight", "seed"]):
        folder = STUDY / "A" / "A-0.9-{:g}-seed{}".format(*run)
        history = read_history(folder, 20)
        assert of_run["steps"].tolist() == [1875 * row["epoch"] for row in history]
        for row, epoch in zip(of_run.to_dict("records"), history):
            assert row["errors"] == pytest.approx(10_000 * (1 - epoch["val_classification_accuracy"]), abs=0.1)
            for loss in ("classification_loss", "autoencoder_loss"):
                assert row[loss] == pytest.approx(epoch[f"val_{loss}"], abs=2e-5)
        measured = metrics(folder)
        assert [row[name] for name in ("errors", "classification_loss", "autoencoder_loss")] == [
            measured[name] for name in ("errors", "classification_loss", "autoencoder_loss")
        ]
