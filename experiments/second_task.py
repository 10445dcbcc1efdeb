"""Does the second task help the first? Train the network with and without it, many times, and record every run.

    python experiments/second_task.py              all parts on this machine, one run at a time
    python experiments/second_task.py --part B     one part only
    python experiments/second_task.py --quick      every part in miniature, under 3 minutes

A run that finished is a row (part C: a row a measurement) in runs.csv and is never run again, so the
study can be stopped at any time, and the same command goes on with it. Runs go through Dask: to a local
cluster, or with --scheduler ADDRESS to one that exists, whose workers see this folder and the output
directory under the same paths. Needs experiments/requirements.txt; docs/second_task.md has the answer.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import logging
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
from data import DATA, InputError, load_data
from files import atomic_write, locked
from train import BATCH_SIZE, EPOCHS

OUTPUT_DIR = Path("outputs/second_task")
QUICK_DIR = Path("outputs/second_task_quick")
RUNS = "runs.csv"
SETTINGS = ("part", "classification_weight", "autoencoder_weight", "filters", "seed", "images", "steps")
MEASURED = ("errors", "test_images", "classification_loss", "autoencoder_loss", "seconds", "weights_sha256")
PROVENANCE = ("threads", "machine", "versions")
COLUMNS = (*SETTINGS, *MEASURED, *PROVENANCE)
NUMBERS = {name: int for name in ("filters", "seed", "images", "steps", "errors", "test_images", "threads")} | {
    name: float
    for name in ("classification_weight", "autoencoder_weight", "classification_loss", "autoencoder_loss", "seconds")
}

# The parts. 0.9 with 0, and not 1 with 0, is the classifier alone: under SGD a weight is also a learning rate.
BOTH_AND_ALONE = ((0.9, 0.1), (0.9, 0))  # the article's weights, and the classifier alone
MANY_WEIGHTS = ((0.9, 0), (0.9, 0.1), (0.9, 1), (0.9, 10))
FEW_IMAGES, FEW_STEPS, REPEATS = 1000, 1250, 40  # 40 times 1,000 images are 1,250 batches of 32
SPEED_WEIGHTS = ((0.5, 0.5), (0.9, 0.1))
MEASURED_AT = (0, 25, 50, 100, 200, 400, 800, 1875)
README_EPOCHS = 5
# Ctrl-C reaches every process of a terminal; it is for the one that can say how to go on.
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
FILTERS = 64  # [A]


def new_run(part, weights, seed, **more):
    """Return a run as a dict: its settings, and how it is to be done."""
    run = {"part": part, "classification_weight": weights[0], "autoencoder_weight": weights[1], "filters": FILTERS}
    return {**run, "seed": seed, **more}


def plan(quick=False):
    """Return the runs of the study; those that are compared stand together, so that they run on one machine."""
    count = 640 if quick else 60_000
    seeds = {"A": 2, "B": 2, "C": 2} if quick else {"A": 5, "B": 16, "C": 5}
    epochs, short = (2, 1) if quick else (EPOCHS, README_EPOCHS)
    few = {"images": 64, "steps": 4} if quick else {"images": FEW_IMAGES, "steps": FEW_STEPS}
    at = (0, 5, 10, 20) if quick else MEASURED_AT

    def whole(epochs):
        return {"images": count, "epochs": epochs, "steps": epochs * count // BATCH_SIZE}

    return [
        *(new_run("A", weights, seed, **whole(epochs)) for seed in range(seeds["A"]) for weights in BOTH_AND_ALONE),
        *(new_run("B", weights, seed, **few) for seed in range(seeds["B"]) for weights in MANY_WEIGHTS),
        *(
            new_run("C", weights, seed, images=count, steps=at[-1], measured_at=at)
            for seed in range(seeds["C"])
            for weights in SPEED_WEIGHTS
        ),
        new_run("D", (0.1, 0.9), 0, **whole(short)),
        new_run("D", (0.9, 0.1), 0, **whole(short)) | {"filters": 8},
    ]


def name_of(run):
    """Return a run's name, "A-0.9-0.1-seed3": of its folder, and in messages."""
    weights = f"{run['classification_weight']:g}-{run['autoencoder_weight']:g}"
    filters = "" if run["filters"] == FILTERS else f"-filters{run['filters']}"
    return f"{run['part']}-{weights}{filters}-seed{run['seed']}"


def few_images(images, labels, count, steps, seed):
    """Draw `count` images for a seed, and repeat them to so many full batches.

    One pass of train() over the repeated images is the whole run: it shuffles all of them at once, and
    measures only at the end.
    """
    chosen = np.random.default_rng([seed, 2]).choice(len(images), count, replace=False)
    repeats = steps * BATCH_SIZE / count
    if repeats != int(repeats):
        raise ValueError(f"{steps} batches are no whole number of passes over {count} images")
    return np.tile(images[chosen], (int(repeats), 1, 1)), np.tile(labels[chosen], int(repeats))


def train_in_memory(run, train_set, test_set):
    """Train a run in memory; returns [(steps, metrics, model), ...], one for each measurement."""
    weights = {"classification": run["classification_weight"], "autoencoder": run["autoencoder_weight"]}
    network = train.new_model(run["seed"], weights)
    measured_at = run.get("measured_at", (run["steps"],))
    measurements = []

    def measure_after(steps):
        if steps in measured_at:
            measurements.append((steps, evaluate.evaluate(network, *test_set), network))

    measure_after(0)
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: measure_after(step + 1))
    curve_set = tuple(part[:BATCH_SIZE] for part in test_set)  # train() measures on it once; nothing here uses that
    list(train.train(network, train_set, curve_set, epochs=1, seed=run["seed"], callbacks=[callback]))
    return measurements


def train_in_folder(run, data, folder):
    """Train a run as train.py does, in a folder that it can go on in; returns the same as train_in_memory()."""
    options = ["--output-dir", str(folder), "--data", str(data)]
    weights = ["--loss-weights", str(run["classification_weight"]), str(run["autoencoder_weight"])]
    settings = [*weights, "--seed", str(run["seed"]), "--epochs", str(run["epochs"])]
    resume = ["--resume"] if (folder / run_folder.SETTINGS).exists() else []
    model.FILTERS = run["filters"]
    with contextlib.redirect_stdout(io.StringIO()):
        train.main([*options, *settings, *resume])
        evaluate.main(options)
    network, _ = run_folder.load_network(folder)
    metrics = json.loads((folder / run_folder.METRICS).read_text(encoding="utf-8"))  # evaluate.main() measured it
    return [(run["steps"], metrics, network)]


def do(run, data, folder, threads):
    """Do a run, on a worker, in a process of its own; returns its rows for runs.csv.

    Alone in its process, a run draws the same random numbers whatever Dask and other runs draw.
    """
    job = {"run": run, "data": str(data), "folder": str(folder), "threads": threads}
    command = [sys.executable, str(ROOT / "experiments" / "second_task.py"), "--run", json.dumps(job)]
    count = {"TF_NUM_INTRAOP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
        with subprocess.Popen(command, **pipes, text=True, env={**os.environ, **count}) as process:
            output = process.stdout.read()
            process.wait()
        if process.returncode:
            said.seek(0)
            raise RuntimeError((said.read().strip().splitlines() or [f"status {process.returncode}"])[-1])
    return json.loads(output.splitlines()[-1])


def end_with_the_worker():
    """End this process as soon as the one that started it is gone, and so its end of the pipe."""
    sys.stdin.read()
    os._exit(1)


def run_here(run, data, folder, threads):
    """Do a run in this process; returns its rows for runs.csv. Files go to `folder`, of runs that have some."""
    (images, labels), test_set, _ = load_data(data)
    started = time.perf_counter()
    if "epochs" in run:
        measurements = train_in_folder(run, data, folder)
        seconds = sum(row["seconds"] for row in run_folder.read_history(folder))
    else:
        train_set = images[: run["images"]], labels[: run["images"]]
        if run["part"] == "B":
            train_set = few_images(images, labels, run["images"], run["steps"], run["seed"])
        measurements = train_in_memory(run, train_set, test_set)
        seconds = time.perf_counter() - started

    versions = {name: value for name, value in run_folder.environment().items() if name != "device"}
    versions = ", ".join(map(" ".join, versions.items()))
    provenance = {"threads": threads, "machine": run_folder.processor(), "versions": versions}
    rows = []
    for steps, metrics, _ in measurements:
        row = {name: run[name] for name in SETTINGS} | {"steps": steps, "seconds": round(seconds, 1)}
        row |= {name: metrics[name] for name in ("errors", "classification_loss", "autoencoder_loss")}
        row |= {"test_images": metrics["images"], "weights_sha256": ""}
        rows.append({**row, **provenance})
    weights = b"".join(array.tobytes() for array in measurements[-1][2].get_weights())
    rows[-1]["weights_sha256"] = hashlib.sha256(weights).hexdigest()  # of the end, which is the last measurement
    return rows


def read_runs(path):
    """Read runs.csv; returns its rows as dicts, [] when there is none. Raises InputError when it is damaged."""
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file, strict=True)
        if tuple(header) != COLUMNS:
            raise ValueError
        rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
        rows = [{name: NUMBERS.get(name, str)(text) for name, text in row.items()} for row in rows]
        if len({key_of(row) for row in rows}) != len(rows):
            raise ValueError
    except (ValueError, csv.Error):
        raise InputError(f"{path}: damaged, not what this program wrote; mend it, or move it away") from None
    return rows


def write_runs(path, rows):
    """Write runs.csv, whole, in the order of the parts."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=key_of))


def key_of(row):
    """Return what makes a row the only one of its kind."""
    return tuple(row[name] for name in SETTINGS)


def is_done(run, rows):
    """Return whether a run's last measurement is among the rows."""
    return key_of(run) in {key_of(row) for row in rows}


@contextlib.contextmanager
def connect(scheduler, workers):
    """Yield a Dask client: of the cluster at an address, or of a local one with so many workers."""
    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if scheduler:
            try:
                client = stack.enter_context(distributed.Client(scheduler, timeout=5))
            except (OSError, ValueError, TypeError) as error:
                raise InputError(f"no Dask scheduler answers at {scheduler} ({error})") from None
        else:
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,  # a process does one run at a time
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",  # any free port, for another study may be running
                    silence_logs=logging.CRITICAL,
                    preload=IGNORE_CTRL_C,
                )
            )
            client = stack.enter_context(distributed.Client(cluster))
        yield client


def study(client, runs, rows, data, output_dir, threads):
    """Have the workers do the runs, and add what they return to rows and to runs.csv, run by run.

    Returns the names of the runs that failed.
    """
    import distributed

    waiting, futures = list(runs), {}
    finished = distributed.as_completed()

    def submit_next():
        """Give every free worker the next run of the plan, in its order."""
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        while waiting and len(futures) < max(workers, 1):
            run = waiting.pop(0)
            folder = output_dir / run["part"] / name_of(run)
            future = client.submit(do, run, data, folder, threads, key=name_of(run), pure=False)
            futures[future] = run
            finished.add(future)

    failed, started = [], time.perf_counter()
    steps_left = total = sum(run["steps"] for run in runs)
    submit_next()
    for future in finished:
        run = futures.pop(future)
        submit_next()
        steps_left -= run["steps"]
        try:
            rows += future.result()
            write_runs(output_dir / RUNS, rows)
            said = "{errors} errors in {test_images}, {seconds:.0f} s".format(**rows[-1])
        except Exception as error:  # whatever it is, the other runs go on
            failed.append(name_of(run))
            said = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        left = (time.perf_counter() - started) / (total - steps_left) * steps_left / 60
        print(f"{name_of(run)}: {said}; runs left: {len(waiting) + len(futures)}, about {left:.0f} min", flush=True)
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
    add("--part", choices="ABCD", action="append", help="do this part only; can be given again")
    add("--quick", action="store_true", help=f"every part in miniature, under 3 minutes, in {QUICK_DIR}")
    add("--workers", type=cli.number(int, 1), default=1, help="runs at a time on this machine (default: 1)")
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
        planned = [run for run in plan(args.quick) if run["part"] in (args.part or "ABCD")]
        runs = [run for run in planned if not is_done(run, rows)]
        print(f"{len(planned)} runs, {len(planned) - len(runs)} of them done before", flush=True)
        failed = []
        if runs:
            data = quick_data(args.output_dir) if args.quick else DATA
            try:
                with connect(args.scheduler, args.workers) as client:
                    failed = study(client, runs, rows, data, args.output_dir, args.threads)
            except KeyboardInterrupt:
                done = sum(is_done(run, rows) for run in planned)
                command = cli.next_command("experiments/second_task.py", args.output_dir)
                print(f"{done} of {len(planned)} runs are in {RUNS}; go on with: {command} and the same options")
                raise
    from experiments.answer import answer

    written, _ = answer(args.output_dir)
    print(f"Wrote {', '.join([RUNS, *written])} to {args.output_dir}.")
    if failed:
        raise InputError(f"{len(failed)} of {len(runs)} runs failed, the others are recorded: {', '.join(failed)}")


if __name__ == "__main__":
    cli.start(main)
