"""Does the second task help the first? Train the network with and without it, many times, and record every run.

    python experiments/second_task.py              all parts on this machine, one run at a time
    python experiments/second_task.py --part B     one part only
    python experiments/second_task.py --quick      every part in miniature, some minutes

Runs that are compared are one task, and so of one machine. What a task found is in runs.csv when it is done, and never
done again: the study can be stopped at any time, and the same command goes on with it. Tasks go through Dask: to a
local cluster, or with --scheduler ADDRESS to one that exists, whose workers see this folder and the output directory
under the same paths. Needs experiments/requirements.txt. experiments/answer.py makes tables and charts of the rows.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cli  # first, for it loads Keras without TensorFlow's greeting

import keras

import evaluate
import model
import run_folder
import train
from data import DATA, InputError, epoch_order, load_data, make_targets, preprocess
from experiments.calibration import calibrate
from files import atomic_write, locked

OUTPUT_DIR = Path("outputs/second_task")
QUICK_DIR = Path("outputs/second_task_quick")
RUNS = "runs.csv"
PARTS = ("A", "B", "C", "C2", "D", "E")
INTEGERS = ("filters", "seed", "images", "unlabelled", "steps", "errors", "test_images", "threads")
TEXTS = ("part", "weights_sha256", "network_sha256", "commit", "machine", "versions")  # other columns are floats
SETTINGS = ("part", "classification_weight", "autoencoder_weight", "filters", "seed", "images", "unlabelled", "steps")
MEASURED = ("errors", "test_images", "classification_loss", "autoencoder_loss")
# Of part E. The last three are measured at a temperature fitted on other images.
CALIBRATION = ("true_probability", "loss_when_wrong", "calibration_error", "temperature", "fitted_loss", "fitted_error")
PROVENANCE = ("seconds", "weights_sha256", "network_sha256", "commit", "threads", "machine", "versions")
COLUMNS = (*SETTINGS, *MEASURED, *CALIBRATION, *PROVENANCE)

FILTERS = 64  # [A]
# The arms, as weights of the losses. 0.9 with 0, and not 1 with 0, is the classifier alone: under SGD a weight is also
# a learning rate.
BOTH, ALONE, LARGER, LARGE = (0.9, 0.1), (0.9, 0), (0.9, 1), (0.9, 10)
EQUAL, TURNED = (0.5, 0.5), (0.1, 0.9)
WITH_OTHERS = 96  # images without labels in a step of part E, beside the labelled ones
# How large the parts are: for the study, and for --quick.
SIZES = {"whole": 60_000, "few": 1000, "fewer": 100, "steps": 1250, "epochs": train.EPOCHS, "short": 5, "held_out": 5000}
SIZES |= {"at": (0, 25, 50, 100, 200, 400, 800, 1875), "early": (25, 50, 100, 200, 400, 800), "seeds": 5, "more": 16}
QUICK = {"whole": 640, "few": 64, "fewer": 20, "steps": 4, "epochs": 2, "short": 1, "held_out": 100}
QUICK |= {"at": (0, 5, 20), "early": (5, 10), "seeds": 2, "more": 2}
# Ctrl-C reaches every process of a terminal; it is for the one that can say how to go on.
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def new_run(part, weights, seed, images, steps, **more):
    """Return a run as a dict: its settings, and how it is to be done.

    measured_at: after which steps, by default after the last one. epochs: it is a whole run of train.py. per_class: its
    images are drawn class by class. unlabelled: images without labels in each step, beside the 32. held_out: how many
    other images are for the temperature.
    """
    run = dict(zip(SETTINGS, (part, *weights, FILTERS, seed, images, 0, steps)))
    return {**run, "measured_at": [steps], **more}


def plan(quick=False):
    """Return the tasks of the study, lists of the runs that are compared and so are done on one machine."""
    size = argparse.Namespace(**(QUICK if quick else SIZES))

    def compared(part, arms, seeds, images, steps, **more):
        return [[new_run(part, weights, seed, images, steps, **more) for weights in arms] for seed in range(seeds)]

    def passes(part, arms, seeds, epochs, **more):
        steps = epochs * size.whole // train.BATCH_SIZE
        return compared(part, arms, seeds, size.whole, steps, epochs=epochs, **more)

    tasks = [
        *passes("A", (BOTH, ALONE), size.seeds, size.epochs),
        *compared("B", (ALONE, BOTH, LARGER, LARGE), size.more, size.few, size.steps),
        *compared("C", (EQUAL, BOTH), size.seeds, size.whole, size.at[-1], measured_at=size.at),
        *compared("C2", (ALONE, BOTH), size.more, size.whole, size.early[-1], measured_at=size.early),
        *passes("D", (TURNED,), 1, size.short),
        *passes("D", (BOTH,), 1, size.short, filters=8),
    ]
    for images, filters, with_others in (
        (size.fewer, 8, (LARGE,)),
        (size.fewer, FILTERS, (LARGER, LARGE)),
        (size.few, FILTERS, (LARGER, LARGE)),
    ):
        more = {"filters": filters, "per_class": images == size.fewer, "held_out": size.held_out}
        labelled = compared("E", (ALONE, LARGE), size.more, images, size.steps, **more)
        others = compared("E", with_others, size.more, images, size.steps, unlabelled=WITH_OTHERS, **more)
        tasks += [[*first, *second] for first, second in zip(labelled, others)]
    return tasks


def name_of(run):
    """Return a run's name, "E-0.9-10-images100-unlabelled96-filters8-seed3": of its folder, and in messages."""
    name = f"{run['part']}-{run['classification_weight']:g}-{run['autoencoder_weight']:g}"
    if run["part"] == "E":
        name += f"-images{run['images']}-unlabelled{run['unlabelled']}"
    filters = "" if run["filters"] == FILTERS else f"-filters{run['filters']}"
    return f"{name}{filters}-seed{run['seed']}"


def choose_images(run, labels):
    """Return indices of training images: of each step's, (steps, 32 + unlabelled), and of those held out.

    All images are in the order that train() has in its first epoch. Few images are drawn for the seed, and repeated,
    and all repetitions are shuffled together. Images without labels, and those held out, are others.
    """
    seed, count = run["seed"], run["images"]
    own, draw = np.arange(len(labels)), np.random.default_rng([seed, 2])
    if run.get("per_class"):
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        own = np.concatenate([draw.choice(each, count // len(classes), replace=False) for each in classes])
    elif count < len(labels):
        own = draw.choice(len(labels), count, replace=False)
    repeated = np.tile(own, math.ceil(run["steps"] * train.BATCH_SIZE / count))
    order = epoch_order(len(repeated), seed, 0)[: run["steps"] * train.BATCH_SIZE]
    others = np.random.default_rng([seed, 3]).permutation(np.setdiff1d(np.arange(len(labels)), own))
    held_out, others = np.split(others, [run.get("held_out", 0)])
    without_labels = np.resize(others, (run["steps"], run["unlabelled"]))  # at their end, from their beginning again
    return np.hstack([repeated[order].reshape(run["steps"], -1), without_labels]), held_out


def without_decoder(network, weight):
    """Return a network's layers up to the classification, compiled like the whole."""
    alone = keras.Model(network.input, [network.get_layer("classification").output])
    optimizer = keras.optimizers.SGD(train.LEARNING_RATE, momentum=train.MOMENTUM, nesterov=True)
    alone.compile(optimizer, loss=["categorical_crossentropy"], loss_weights=[weight])
    return alone


def new_network(run):
    """Return a run's network, compiled. The classifier alone has no decoder, and draws the same random numbers."""
    model.FILTERS = run["filters"]
    weights = {"classification": run["classification_weight"], "autoencoder": run["autoencoder_weight"]}
    network = train.new_model(run["seed"], weights)
    return network if run["autoencoder_weight"] else without_decoder(network, run["classification_weight"])


def measure(network, test_set, held_out):
    """Return what compute_metrics() and, if images are held out, calibrate() make of a network's answers."""
    outputs = model.predict(network, test_set[0])
    found = evaluate.compute_metrics(*test_set, {"autoencoder": np.nan, **outputs})
    if len(held_out[0]):
        fitted_on = model.predict(network, held_out[0])["classification"], held_out[1]
        found |= calibrate(outputs["classification"], test_set[1], *fitted_on)
    return found


def train_in_memory(run, train_set, test_set):
    """Train a run step by step; yields (steps, what was measured, seconds, network) where it measures."""
    images, labels = train_set
    network = new_network(run)
    class_num = network.get_layer("classification").units
    indices, held_out = choose_images(run, labels)
    sample_weights = None
    if run["unlabelled"]:  # the loss is a mean over all images of a step; a label is to count as it does without them
        count = indices.shape[1]
        of_labels = np.float32([count / train.BATCH_SIZE] * train.BATCH_SIZE + [0] * run["unlabelled"])
        sample_weights = of_labels, np.ones((count, 1, 1), np.float32)
    train.reseed(network, run["seed"], 0)
    started = time.perf_counter()
    for step in range(run["steps"] + 1):
        if step in run["measured_at"]:
            found = measure(network, test_set, (images[held_out], labels[held_out]))
            yield step, found, time.perf_counter() - started, network
        if step == run["steps"]:
            break
        x = preprocess(images[indices[step]])
        targets = make_targets(x, labels[indices[step]], class_num)
        with model.keras_settings():
            targets = tuple(targets[name] for name in network.output_names)
            loss = np.ravel(network.train_on_batch(x, targets, sample_weights))[0]
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in step {step + 1}")


def train_in_folder(run, data, folder):
    """Train a run as train.py does, in a folder that it can go on in; yields the same as train_in_memory(), once."""
    options = ["--output-dir", str(folder), "--data", str(data)]
    weights = ["--loss-weights", str(run["classification_weight"]), str(run["autoencoder_weight"])]
    settings = [*weights, "--seed", str(run["seed"]), "--epochs", str(run["epochs"])]
    resume = ["--resume"] if (folder / run_folder.SETTINGS).exists() else []
    model.FILTERS = run["filters"]
    with contextlib.redirect_stdout(io.StringIO()):
        train.main([*options, *settings, *resume])
        evaluate.main(options)
    metrics = json.loads((folder / run_folder.METRICS).read_text(encoding="utf-8"))
    seconds = sum(row["seconds"] for row in run_folder.read_history(folder))
    yield run["steps"], metrics, seconds, run_folder.load_network(folder)[0]


def run_here(run, data, folder, threads):
    """Do a run in this process; returns its rows for runs.csv. Files go to `folder`, of runs that have some."""
    train_set, test_set, _ = load_data(data)
    versions = {name: value for name, value in run_folder.environment().items() if name != "device"}
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    provenance = {"commit": commit, "threads": threads, "machine": run_folder.processor()}
    provenance |= {"versions": ", ".join(map(" ".join, versions.items())), "weights_sha256": ""}
    rows = []
    in_folder = "epochs" in run
    measured = train_in_folder(run, data, folder) if in_folder else train_in_memory(run, train_set, test_set)
    for steps, found, seconds, network in measured:
        found = {name: round(float(found[name]), 6) for name in (*MEASURED, *CALIBRATION) if name in found}
        row = {**dict.fromkeys(COLUMNS, math.nan), **run, **provenance, **found, "steps": steps, "seconds": round(seconds, 1)}
        row |= {"errors": int(found["errors"]), "test_images": len(test_set[0])}
        row["network_sha256"] = hashlib.sha256(json.dumps(network.get_config()).encode()).hexdigest()
        rows.append({name: row[name] for name in COLUMNS})
    weights = b"".join(array.tobytes() for array in network.get_weights())
    rows[-1]["weights_sha256"] = hashlib.sha256(weights).hexdigest()  # of the end, which is the last measurement
    return rows


def end_with_the_worker():
    """End this process as soon as the one that started it is gone, and so its end of the pipe."""
    sys.stdin.read()
    os._exit(1)


def do(task, data, folder, threads):
    """Do the runs of a task, on a worker; returns their rows for runs.csv.

    Each has a process of its own, and so draws the same random numbers whatever Dask and other runs draw.
    """
    rows = []
    count = {"TF_NUM_INTRAOP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    for run in task:
        job = {"run": run, "data": str(data), "folder": str(folder / run["part"] / name_of(run)), "threads": threads}
        command = [sys.executable, str(ROOT / "experiments" / "second_task.py"), "--run", json.dumps(job)]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
            with subprocess.Popen(command, **pipes, text=True, env={**os.environ, **count}) as process:
                output = process.stdout.read()
                process.wait()
            if process.returncode:
                said.seek(0)
                why = (said.read().strip().splitlines() or [f"status {process.returncode}"])[-1]
                raise RuntimeError(f"{name_of(run)}: {why}")
        rows += json.loads(output.splitlines()[-1])
    return rows


def end_runs(folder):
    """On a worker, end the runs of the study in a folder."""
    import psutil

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            if "--run" in process.cmdline() and str(folder) in process.cmdline()[-1]:
                process.kill()


def read_runs(path):
    """Read runs.csv; returns its rows as dicts, [] when there is none. Raises InputError when it is damaged."""

    def value_of(name, text):
        return text if name in TEXTS else int(text) if name in INTEGERS else float(text or "nan")

    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file, strict=True)
        if tuple(header) != COLUMNS:
            raise ValueError
        rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
        rows = [{name: value_of(name, text) for name, text in row.items()} for row in rows]
        if len({key_of(row) for row in rows}) != len(rows):
            raise ValueError
    except (ValueError, csv.Error):
        raise InputError(f"{path}: damaged, not what this program wrote; mend it, or move it away") from None
    return rows


def write_runs(path, rows):
    """Write runs.csv, whole, in the order of the parts; what was not measured is left empty."""

    def text_of(value):
        return value if isinstance(value, (str, int)) else "" if math.isnan(value) else f"{value:.12g}"

    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([text_of(row[name]) for name in COLUMNS] for row in sorted(rows, key=key_of))


def key_of(row):
    """Return what makes a row the only one of its kind."""
    return tuple(row[name] for name in SETTINGS)


def is_done(task, rows):
    """Return whether the last measurement of each run of a task is among the rows."""
    return {key_of(run) for run in task} <= {key_of(row) for row in rows}


@contextlib.contextmanager
def connect(scheduler, workers):
    """Yield a Dask client: of the cluster at an address, or of a local one with so many workers."""
    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if not scheduler:
            scheduler = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,  # a process does one run at a time
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",  # any free port, for another study may be running
                    silence_logs=logging.CRITICAL,
                    preload=IGNORE_CTRL_C,
                )
            )
        try:
            yield stack.enter_context(distributed.Client(scheduler, timeout=5))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"no Dask scheduler answers at {scheduler} ({error})") from None


def study(client, tasks, rows, data, output_dir, threads):
    """Have the workers do the tasks, and add what they return to rows and to runs.csv, task by task.

    Returns how many tasks failed. On Ctrl-C nothing of them goes on.
    """
    import distributed

    # The keys are Dask's own, of which no two are alike: another study may have the same names at the same scheduler.
    futures = {client.submit(do, task, data, output_dir, threads, pure=False): task for task in tasks}
    failed, started = 0, time.perf_counter()
    steps_left = total = sum(run["steps"] for task in tasks for run in task)
    try:
        for number, future in enumerate(distributed.as_completed(futures), start=1):
            steps_left -= sum(run["steps"] for run in futures[future])
            if future.exception():  # whatever it is, the other tasks go on
                failed += 1
                print(f"failed: {' '.join(str(future.exception()).split())[:400]}")
            else:
                found = future.result()
                rows += found
                write_runs(output_dir / RUNS, rows)
                for run in futures[future]:
                    end = next(row for row in found if key_of(row) == key_of(run))
                    print("{}: {errors} errors in {test_images}, {seconds:.0f} s".format(name_of(run), **end))
            left = (time.perf_counter() - started) / (total - steps_left) * steps_left / 60
            print(f"{len(tasks) - number} tasks left, about {left:.0f} min", flush=True)
    except BaseException:
        client.cancel(list(futures), force=True)
        client.run(end_runs, output_dir)
        raise
    return failed


def quick_data(output_dir):
    """Write a small cut of MNIST for --quick, and return its path."""
    (x_train, y_train), (x_test, y_test), _ = load_data()
    path = output_dir / "quick.npz"
    with atomic_write(path) as temporary:
        np.savez(temporary, x_train=x_train[:640], y_train=y_train[:640], x_test=x_test[:200], y_test=y_test[:200])
    return path


def parse_args(argv=None):
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    parser.set_defaults(output_dir=None)
    add("--part", choices=PARTS, action="append", help="do this part only; can be given again")
    add("--quick", action="store_true", help=f"every part in miniature, some minutes, in {QUICK_DIR}")
    add("--workers", type=cli.number(int, 1), default=1, help="tasks at a time on this machine (default: 1)")
    add("--threads", type=cli.number(int, 1), help="of the backend in a run (default: the cores by the workers)")
    add("--run", type=json.loads, help=argparse.SUPPRESS)  # for the processes that the workers start
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster that exists, such as tcp://127.0.0.1:8786")
    args = parser.parse_args(argv)
    args.output_dir = (args.output_dir or (QUICK_DIR if args.quick else OUTPUT_DIR)).resolve()
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.workers)
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.run:
        threading.Thread(target=end_with_the_worker, daemon=True).start()
        paths = {"data": Path(args.run["data"]), "folder": Path(args.run["folder"])}
        return print(json.dumps(run_here(**{**args.run, **paths})))
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise InputError("no Dask here: pip install -r experiments/requirements.txt") from None

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(args.output_dir / ".lock", "study"):
        rows = read_runs(args.output_dir / RUNS)
        planned = [task for task in plan(args.quick) if task[0]["part"] in (args.part or PARTS)]
        tasks = [task for task in planned if not is_done(task, rows)]
        print(f"{len(planned)} tasks, {len(planned) - len(tasks)} of them done before", flush=True)
        failed = 0
        if tasks:
            data = quick_data(args.output_dir) if args.quick else DATA
            try:
                with connect(args.scheduler, args.workers) as client:
                    failed = study(client, tasks, rows, data, args.output_dir, args.threads)
            except KeyboardInterrupt:
                done = sum(is_done(task, rows) for task in planned)
                command = cli.next_command("experiments/second_task.py", args.output_dir)
                print(f"{done} of {len(planned)} tasks are in {RUNS}; go on with: {command} and the same options")
                raise
    print(f"Wrote {RUNS} to {args.output_dir}. Next: {cli.next_command('experiments/answer.py', args.output_dir)}")
    if failed:
        raise InputError(f"{failed} of {len(tasks)} tasks failed, the others are recorded")


if __name__ == "__main__":
    cli.start(main)
