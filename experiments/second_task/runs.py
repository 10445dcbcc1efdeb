"""Does the second task help the first? Train the network with and without it, many times, and record every run.

    python -m experiments.second_task.runs              all parts on this machine, one run at a time
    python -m experiments.second_task.runs --part B     one part only

Runs that are compared are one task, and so of one machine. What a task found is in runs.csv when it is done, and the
task is never done again: stop the study at any time, and the same command goes on with it. It takes some days of two
cores. With --scheduler ADDRESS the runs are done by the workers of a Dask cluster, which must see this folder and the
output directory under the same paths. Needs experiments/requirements.txt.
"""

if __name__ in ("__main__", "__mp_main__"):  # a worker of Dask's loads this file, too
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

import hashlib
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from data import epoch_order, load_data
from evaluate import compute_metrics, run_network
from experiments import jobs
from experiments.steps import train_steps, without_decoder
from support import cli
from support.backend import reseed
from support.environment import environment, processor
from support.errors import InputError
from support.files import atomic_write, locked
from train import BATCH_SIZE, EPOCHS, new_model

OUTPUT_DIR = Path("outputs/second_task")
RUNS = "runs.csv"
SETTINGS = {"part": str, "classification_weight": float, "autoencoder_weight": float, "filters": int, "seed": int}
SETTINGS |= {"images": int, "unlabelled": int, "steps": int}
MEASURED = {"errors": int, "test_images": int, "classification_loss": float, "autoencoder_loss": float}
CALIBRATION = ("true_probability", "loss_when_wrong", "calibration_error", "temperature", "fitted_loss", "fitted_error")
ORIGIN = {"seconds": float, "weights_sha256": str, "network_sha256": str, "commit": str, "threads": int}
COLUMNS = {**SETTINGS, **MEASURED, **dict.fromkeys(CALIBRATION, float), **ORIGIN, "machine": str, "versions": str}

FILTERS = 64  # [A]
# The arms, as weights of the losses. 0.9 with 0, and not 1 with 0, is the classifier alone: under SGD a weight is also
# a learning rate.
BOTH, ALONE, LARGER, LARGE = "0.9 0.1", "0.9 0", "0.9 1", "0.9 10"
ALL_IMAGES = 60_000
WITHOUT_LABELS = 96  # images in a step of part E, beside the 32 that have one
HELD_OUT = 5000  # images on which part E's temperatures are fitted
BINS = 15  # of the calibration error, as in Guo, Pleiss, Sun & Weinberger 2017, https://arxiv.org/abs/1706.04599


def new_run(part, arm, seed, images, steps, **more):
    """Return a run as a dict: its settings, and how it is to be done.

    arm: a text, as above. measured_at: after which steps, by default after the last one. per_class: its images are
    drawn class by class. unlabelled: images without labels in each step, beside the 32. held_out: how many other images
    are for the temperature. share_of_data: how many training and test images there are, from the first, None for all.
    """
    run = dict(zip(SETTINGS, (part, *map(float, arm.split()), FILTERS, seed, images, 0, steps)))
    return {**run, "measured_at": [steps], "held_out": 0, "share_of_data": (None, None), **more}


def plan():
    """Return the tasks of the study, lists of the runs that are compared and so are done on one machine.

    The rows of a part C, which nothing needs any more, are in the record, too.
    """

    def compared(part, arms, seeds, images, steps, **more):
        return [[new_run(part, arm, seed, images, steps, **more) for arm in arms] for seed in range(seeds)]

    epoch = ALL_IMAGES // BATCH_SIZE
    epochs = [epoch * number for number in range(1, EPOCHS + 1)]
    at = [25, 50, 100, 200, 400, 800]
    tasks = [
        *compared("A", (BOTH, ALONE), 5, ALL_IMAGES, epochs[-1], measured_at=epochs),
        *compared("B", (ALONE, BOTH, LARGER, LARGE), 16, 1000, 1250),
        *compared("C2", (ALONE, BOTH), 16, ALL_IMAGES, 800, measured_at=at),
    ]
    for images, filters, arms in ((100, 8, [LARGE]), (100, FILTERS, [LARGER, LARGE]), (1000, FILTERS, [LARGER, LARGE])):
        more = {"filters": filters, "per_class": images == 100, "held_out": HELD_OUT}
        labelled = compared("E", (ALONE, LARGE), 16, images, 1250, **more)
        others = compared("E", arms, 16, images, 1250, unlabelled=WITHOUT_LABELS, **more)
        tasks += [[*first, *second] for first, second in zip(labelled, others)]
    first_steps = {"measured_at": [*range(10, 251, 10)], "share_of_data": (None, 2000)}
    for seed in range(16, 48):
        tasks.append([new_run("F", arm, seed, ALL_IMAGES, 250, **first_steps) for arm in (ALONE, BOTH)])
    return tasks


def name_of(run):
    """Return a run's name, "E-0.9-10-images100-unlabelled96-filters8-seed3": for messages."""
    settings = "images{images}-unlabelled{unlabelled}-filters{filters}-seed{seed}"
    return f"{{part}}-{{classification_weight:g}}-{{autoencoder_weight:g}}-{settings}".format(**run)


def choose_images(run, labels):
    """Return indices of training images: each step's, (steps, 32 + unlabelled); those held out; and an epoch's steps.

    All images are in the orders that train() has. Few images are drawn for the seed and repeated, and all of that is
    one epoch. Images without labels, and those held out, are others.
    """
    seed, count, steps = run["seed"], run["images"], run["steps"]
    own, draw = np.arange(len(labels)), np.random.default_rng([seed, 2])
    if run.get("per_class"):
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        own = np.concatenate([draw.choice(each, count // len(classes), replace=False) for each in classes])
    elif count < len(labels):
        own = draw.choice(len(labels), count, replace=False)
    repeats = 1 if count == len(labels) else math.ceil(steps * BATCH_SIZE / count)
    steps_an_epoch = len(own) * repeats // BATCH_SIZE
    epochs = [epoch_order(len(own) * repeats, seed, epoch) for epoch in range(math.ceil(steps / steps_an_epoch))]
    labelled = np.tile(own, repeats)[np.concatenate(epochs)][: steps * BATCH_SIZE].reshape(steps, -1)
    others = np.random.default_rng([seed, 3]).permutation(np.setdiff1d(np.arange(len(labels)), own))
    held_out, others = np.split(others, [run.get("held_out", 0)])
    without_labels = np.resize(others, (steps, run["unlabelled"]))  # at their end, from their beginning again
    return np.hstack([labelled, without_labels]), held_out, steps_an_epoch


def new_network(run):
    """Return a run's network, compiled. The classifier alone has no decoder, and draws the same random numbers."""
    weights = {"classification": run["classification_weight"], "autoencoder": run["autoencoder_weight"]}
    network = new_model(run["seed"], weights, filters=run["filters"])
    return network if run["autoencoder_weight"] else without_decoder(network, run["classification_weight"])


def losses(logits, labels):
    """Return -log p of the true class of each image (n,), from logits (n, classes) and labels (n,)."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def calibration_error(logits, labels):
    """Return the expected calibration error: how far the greatest probability is from the share of right answers.

    The images are sorted into BINS by that probability, and the mean is over the images.
    """
    greatest = softmax(logits, axis=1).max(axis=1)
    gaps = (logits.argmax(axis=1) == labels) - greatest
    bins = np.minimum((greatest * BINS).astype(int), BINS - 1)
    return np.abs(np.bincount(bins, gaps)).sum() / len(labels)


def calibrate(logits, labels, held_logits, held_labels):
    """Return how far probabilities can be trusted, as they are, and at a temperature fitted on images held out.

    Logits, (n, classes), are logarithms of the probabilities; a temperature divides them. true_probability: the mean
    probability of the true class. loss_when_wrong: the mean -log p of the true class where the answer is wrong.
    """

    def held_loss(logarithm):
        return losses(held_logits / np.exp(logarithm), held_labels).mean()

    temperature = np.exp(minimize_scalar(held_loss, bounds=(-3, 3), method="bounded").x)
    loss, wrong = losses(logits, labels), logits.argmax(axis=1) != labels
    return {
        "true_probability": np.exp(-loss).mean(),
        "loss_when_wrong": loss[wrong].mean() if wrong.any() else np.nan,
        "calibration_error": calibration_error(logits, labels),
        "temperature": temperature,
        "fitted_loss": losses(logits / temperature, labels).mean(),
        "fitted_error": calibration_error(logits / temperature, labels),
    }


def measure_network(network, test_set, held_out):
    """Return what compute_metrics() and, if images are held out, calibrate() make of a network's answers."""

    def logits(outputs):
        return np.log(outputs["classification"].clip(np.finfo(np.float32).tiny), dtype=np.float64)

    outputs = run_network(network, test_set[0])
    found = compute_metrics(*test_set, outputs)
    if len(held_out[0]):
        held_outputs = run_network(network, held_out[0])
        found |= calibrate(logits(outputs), test_set[1], logits(held_outputs), held_out[1])
    return found


def train_and_measure(run, train_set, test_set):
    """Do a run step by step; yields (steps, what was measured, seconds, network) where it measures."""
    images, labels = train_set
    network = new_network(run)
    indices, held_out, steps_an_epoch = choose_images(run, labels)
    sample_weights = None
    if run["unlabelled"]:  # the loss is a mean over all images of a step; a label is to count as it does without them
        count = indices.shape[1]
        of_labels = np.float32([count / BATCH_SIZE] * BATCH_SIZE + [0] * run["unlabelled"])
        sample_weights = of_labels, np.ones((count, 1, 1), np.float32)

    def before_step(step):
        if step % steps_an_epoch == 0:
            reseed(network, run["seed"], step // steps_an_epoch)

    started = time.perf_counter()
    trained = train_steps(network, images, labels, indices, before_step, sample_weights)
    for step in range(run["steps"] + 1):
        if step and not math.isfinite(loss := next(trained)["loss"]):
            raise FloatingPointError(f"the loss became {loss} in step {step}")
        if step in run["measured_at"]:
            found = measure_network(network, test_set, (images[held_out], labels[held_out]))
            yield step, found, time.perf_counter() - started, network


def origin(threads):
    """Return what a row says of where it comes from."""
    describe = ["git", "-C", str(jobs.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    found = environment()
    device, machine = found.pop("device"), processor()
    if machine not in device:  # it computes on a GPU
        machine = f"{machine}, {device}"
    versions = ", ".join(f"{name} {value}" for name, value in found.items() if value)
    return {"commit": commit, "threads": threads, "machine": machine, "versions": versions}


def do_run(run, threads):
    """Do a run, on the project's data or the share of them that it names; returns its rows, one a measurement."""
    train_set, test_set, _ = load_data()
    of_train, of_test = run["share_of_data"]
    cut = [part[:of_train] for part in train_set], [part[:of_test] for part in test_set]
    rows, source = [], origin(threads)
    for steps, found, seconds, network in train_and_measure(run, *cut):
        numbers = {name: round(value, 6) for name, value in found.items() if isinstance(value, (int, float))}
        row = {**numbers, "test_images": numbers["images"], **run, "steps": steps, "seconds": round(seconds, 1)}
        hashed = hashlib.sha256(json.dumps(network.get_config()).encode()).hexdigest()
        rows.append({**row, "network_sha256": hashed, "weights_sha256": "", **source})
    weights = b"".join(array.tobytes() for array in network.get_weights())
    rows[-1]["weights_sha256"] = hashlib.sha256(weights).hexdigest()  # of the end, which is the last measurement
    return rows


def read_runs(path):
    """Read runs.csv; returns its rows as a table, without rows if there is none. Raises InputError if it is damaged."""
    if not path.exists():
        return pandas.DataFrame(columns=list(COLUMNS))
    not_measured = {name: [""] for name, kind in COLUMNS.items() if kind is float}
    try:
        rows = pandas.read_csv(path, dtype=COLUMNS, na_values=not_measured, keep_default_na=False)
        if [*rows] != [*COLUMNS] or rows.duplicated([*SETTINGS]).any() or rows["versions"].isna().any():
            raise ValueError
    except ValueError:  # pandas' own errors are such ones too
        raise InputError(f"{path}: damaged, not what this program wrote; mend it, or move it away") from None
    return rows


def write_runs(path, rows):
    """Write runs.csv, whole, in the order of the parts; what was not measured is left empty."""
    with atomic_write(path) as temporary:
        rows.sort_values([*SETTINGS]).to_csv(temporary, index=False, float_format="%.12g", lineterminator="\n")


def is_done(task, rows):
    """Return whether the last measurement of each run of a task is among the rows."""
    done = set(rows[[*SETTINGS]].itertuples(index=False, name=None))
    return all(tuple(run[name] for name in SETTINGS) in done for run in task)


def main(argv=None, planned=None):
    """The program. planned: the tasks of the study, by default plan()."""
    planned = planned or plan()
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    parts = sorted({task[0]["part"] for task in planned})
    parser.add_argument("--part", choices=parts, action="append", help="can be given again")
    args = jobs.parse_args(parser, argv)
    if args.job:
        return jobs.answer(args.job, do_run)
    folder = args.output_dir
    with locked(folder / ".lock", "study"):
        rows = read_runs(folder / RUNS)
        planned = [task for task in planned if not args.part or task[0]["part"] in args.part]
        tasks = [task for task in planned if not is_done(task, rows)]
        print(f"{len(planned)} tasks, {len(planned) - len(tasks)} of them done before", flush=True)

        def record(found):
            nonlocal rows
            found = pandas.DataFrame(found, columns=[*COLUMNS]).astype(COLUMNS)
            rows = pandas.concat([rows, found]) if len(rows) else found
            write_runs(folder / RUNS, rows)
            for run in found.drop_duplicates([*SETTINGS][:-1], keep="last").to_dict("records"):
                print("{}: {errors} errors in {test_images}, {seconds:.0f} s".format(name_of(run), **run))

        try:
            if tasks:
                jobs.do_tasks("experiments.second_task.runs", tasks, args, record)
        except (KeyboardInterrupt, OSError):
            print(f"What is done is in {RUNS}; the same command goes on with the study")
            raise
    print(f"Wrote {RUNS} to {folder}. Next: python -m experiments.second_task.answer --output-dir {folder}")


if __name__ == "__main__":
    cli.start(main)
