"""Does the second task help the first? Train the network with and without it, many times, and record every run.

    python experiments/second_task.py              all parts on this machine, one run at a time
    python experiments/second_task.py --part B     one part only
    python experiments/second_task.py --quick      every part in miniature, in some minutes

Runs that are compared are one task, and so of one machine. What a task found is in runs.csv when it is done, and the
task is never done again: stop the study at any time, and the same command goes on with it. Tasks go through Dask: to a
local cluster, or with --scheduler ADDRESS to one that exists, whose workers see this folder and the output directory
under the same paths. Needs experiments/requirements.txt. experiments/answer.py makes tables and charts of the rows.
"""

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ in ("__main__", "__mp_main__"):  # a worker of Dask's loads this file, too
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

from data import InputError
from support import cli
from support.files import atomic_write, locked
from train import BATCH_SIZE, EPOCHS

with contextlib.suppress(ImportError):  # main() says what to install
    import distributed
    import pandas
    import psutil

OUTPUT_DIR = Path("outputs/second_task")
QUICK_DIR = Path("outputs/second_task_quick")
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
BOTH, ALONE, LARGER, LARGE, EQUAL = (0.9, 0.1), (0.9, 0), (0.9, 1), (0.9, 10), (0.5, 0.5)
ALL_IMAGES = 60_000
WITHOUT_LABELS = 96  # images in a step of part E, beside the 32 that have one
HELD_OUT = 5000  # images on which part E's temperatures are fitted
# Ctrl-C reaches every process of a terminal; it is for the one that can say how to go on.
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def new_run(part, weights, seed, images, steps, **more):
    """Return a run as a dict: its settings, and how it is to be done.

    measured_at: after which steps, by default after the last one. per_class: its images are drawn class by class.
    unlabelled: images without labels in each step, beside the 32. held_out: how many other images are for the
    temperature. share_of_data: the first so many training and test images, None for all.
    """
    run = dict(zip(SETTINGS, (part, *weights, FILTERS, seed, images, 0, steps)))
    return {**run, "measured_at": [steps], "held_out": 0, "share_of_data": (None, None), **more}


def plan():
    """Return the tasks of the study, lists of the runs that are compared and so are done on one machine."""

    def compared(part, arms, seeds, images, steps, **more):
        return [[new_run(part, weights, seed, images, steps, **more) for weights in arms] for seed in range(seeds)]

    epoch = ALL_IMAGES // BATCH_SIZE
    epochs = [epoch * number for number in range(1, EPOCHS + 1)]
    at = [0, 25, 50, 100, 200, 400, 800, epoch]
    tasks = [
        *compared("A", (BOTH, ALONE), 5, ALL_IMAGES, epochs[-1], measured_at=epochs),
        *compared("B", (ALONE, BOTH, LARGER, LARGE), 16, 1000, 1250),
        *compared("C", (EQUAL, BOTH), 5, ALL_IMAGES, epoch, measured_at=at),
        *compared("C2", (ALONE, BOTH), 16, ALL_IMAGES, 800, measured_at=at[1:-1]),
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


def in_miniature(task):
    """Return a task's runs with few images and few steps."""
    images = {ALL_IMAGES: 640, 1000: 64, 100: 20}[task[0]["images"]]
    steps, *at = (math.ceil(step / 5000) for step in (task[0]["steps"], *task[0]["measured_at"]))
    less = {"images": images, "steps": steps, "measured_at": sorted(set(at)), "share_of_data": (640, 200)}
    return [{**run, **less, "held_out": min(run["held_out"], 100)} for run in task]


def name_of(run):
    """Return a run's name, "E-0.9-10-images100-unlabelled96-filters8-seed3": for messages."""
    settings = "images{images}-unlabelled{unlabelled}-filters{filters}-seed{seed}"
    return f"{{part}}-{{classification_weight:g}}-{{autoencoder_weight:g}}-{settings}".format(**run)


def do(task, study, threads):
    """Do the runs of a task, on a worker; returns their rows. study: its output directory.

    Each has a process of its own, and so draws the same random numbers whatever Dask and other runs draw.
    """
    rows, count = [], {"TF_NUM_INTRAOP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    for run in task:
        job = json.dumps({"run": run, "threads": threads})
        command = [sys.executable, str(ROOT / "experiments" / "one_run.py"), job, str(study)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **count})
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise RuntimeError(f"{name_of(run)}: {why}")
        rows += json.loads(done.stdout.splitlines()[-1])
    return rows


def end_runs(study):
    """On a worker, end what do() started for a study."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            if process.cmdline()[-1] == str(study):
                process.kill()


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


def connect(scheduler, workers):
    """Return a Dask client: of the cluster at an address, or of a local one with so many workers."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # Of a local one. A worker does one task at a time; any port is right, for another study may be running.
    local = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    local |= {"silence_logs": logging.CRITICAL, "preload": IGNORE_CTRL_C}
    try:
        return distributed.Client(scheduler, timeout=5) if scheduler else distributed.Client(**local)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler} ({error})") from None


def study(client, tasks, rows, output_dir, threads):
    """Have the workers do the tasks, and add what they return to runs.csv, task by task.

    Returns how many tasks failed. On Ctrl-C nothing of them goes on.
    """
    # The keys are Dask's own, of which no two are alike: another study may do runs of these names at the same time.
    futures = {client.submit(do, task, output_dir, threads, pure=False) for task in tasks}
    failed = 0
    try:
        for number, future in enumerate(distributed.as_completed(futures), start=1):
            if future.exception():  # whatever it is, the other tasks go on
                failed += 1
                print(f"failed: {' '.join(str(future.exception()).split())[:400]}")
            else:
                found = pandas.DataFrame(future.result(), columns=[*COLUMNS]).astype(COLUMNS)
                rows = pandas.concat([rows, found]) if len(rows) else found
                write_runs(output_dir / RUNS, rows)
                for run in found.drop_duplicates([*SETTINGS][:-1], keep="last").to_dict("records"):
                    print("{}: {errors} errors in {test_images}, {seconds:.0f} s".format(name_of(run), **run))
            print(f"{number} of {len(tasks)} tasks done", flush=True)
    except BaseException:
        client.cancel([*futures], force=True)
        client.run(end_runs, output_dir)
        raise
    return failed


def parse_args(argv=None):
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    parser.set_defaults(output_dir=OUTPUT_DIR)
    add("--part", choices=sorted({task[0]["part"] for task in plan()}), action="append", help="can be given again")
    add("--quick", action="store_true", help=f"every part in miniature, in {QUICK_DIR}")
    add("--workers", type=cli.number(int, 1), default=1, help="tasks at a time on this machine (default: 1)")
    add("--threads", type=cli.number(int, 1), help="of the backend in a run (default: the cores by the workers)")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster that exists, such as tcp://127.0.0.1:8786")
    args = parser.parse_args(argv)
    if args.quick and args.output_dir == OUTPUT_DIR:
        args.output_dir = QUICK_DIR
    args.output_dir = args.output_dir.resolve()
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.workers)
    return args


def main(argv=None):
    args = parse_args(argv)
    if "distributed" not in sys.modules or "pandas" not in sys.modules:
        raise InputError("Dask or pandas is missing: pip install -r experiments/requirements.txt")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(args.output_dir / ".lock", "study"):
        rows, failed = read_runs(args.output_dir / RUNS), 0
        planned = [task for task in plan() if not args.part or task[0]["part"] in args.part]
        if args.quick:
            planned = [in_miniature(task) for task in planned if task[0]["seed"] % 16 < 2]
        tasks = [task for task in planned if not is_done(task, rows)]
        print(f"{len(planned)} tasks, {len(planned) - len(tasks)} of them done before", flush=True)
        if tasks:
            try:
                with connect(args.scheduler, args.workers) as client:
                    failed = study(client, tasks, rows, args.output_dir, args.threads)
            except (KeyboardInterrupt, OSError):
                command = cli.next_command("experiments/second_task.py", args.output_dir)
                print(f"What is done is in {RUNS}; go on with: {command} and the same options")
                raise
    print(f"Wrote {RUNS} to {args.output_dir}. Next: {cli.next_command('experiments/answer.py', args.output_dir)}")
    if failed:
        raise InputError(f"{failed} of {len(tasks)} tasks failed, the others are recorded")


if __name__ == "__main__":
    cli.start(main)
