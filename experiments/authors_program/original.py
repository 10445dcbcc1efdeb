"""The author's program, trained in its own environment: Python 3.6, Keras 2.1.2, TensorFlow 1.4.1.

    python3.6 -m venv old && old/bin/pip install --no-deps -r experiments/authors_program/original.txt
    old/bin/python -m experiments.authors_program.original AUTHOR --stage race

Seeds 2 to 4 of whole run on Intel's package of TensorFlow 1.15.2: original_fast.txt, installed by pip 21.3.1. On an AMD
processor they had MKL_DEBUG_CPU_TYPE=5 in the environment, or MKL leaves its vector instructions unused; and
OMP_NUM_THREADS=1, a core for each (seed 4: 2). KMP_BLOCKTIME=0 saves time only.
AUTHOR is a folder that holds the author's CNN_Autoencoder (https://github.com/mim92/mnist); its files stay as they
are. Only where keras.datasets would download MNIST, data/mnist.npz is read. Every run is a process of its own and adds
rows to outputs/reference/original/runs.csv. Stop it at any time: the same command goes on.

race: 150 steps, does the original die of a race? small: part B's 1,000 images, 1,250 steps. whole: 20 epochs; a stopped
run goes on with the file that the author's callback saved after the last epoch, and with a new seed. first_steps: the
first 400 steps of small, when does the decoder begin to draw?
masks.py records what is random, comparison.py makes tables of the rows, docs/faithful.md says what came out.
"""

import argparse
import csv
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import SGD

from experiments.authors_program.network import MEASURED, OUTPUT, ROOT, Gated, load_author, measure, set_up
from experiments.authors_program.shared import course
from support.environment import processor

RUNS = os.path.join(OUTPUT, "runs.csv")
RUN = ["stage", "gated", "threads", "seed", "repeat"]  # threads: of both kinds, 0 is TensorFlow's default
COLUMNS = [*RUN, "steps", *MEASURED, "left_in", "above_5", "at_the_end", "drew_in", "losses_sha256"]
COLUMNS += ["seconds", "machine", "versions"]


def plan(stage):
    """Return a stage's runs, a list of values of RUN each, and the steps of a whole one."""
    if stage == "race":
        again = [[stage, gated, threads, 102, n] for n in range(10) for threads in (0, 1) for gated in (0, 1)]
        return again + [[stage, gated, 0, seed, 0] for seed in range(200, 220) for gated in (0, 1)], 150
    if stage != "whole":
        return [[stage, 1, 1, seed, 0] for seed in range(16)], 1250 if stage == "small" else 400
    return [[stage, 1, 0, seed, 0] for seed in range(5)], 37500


def read_rows():
    """Return the steps that are recorded, by run."""
    if not os.path.exists(RUNS):
        return {}
    with open(RUNS, newline="", encoding="utf-8") as file:  # a run's last row stays
        return {
            (row["stage"], *(int(row[name]) for name in RUN[1:])): int(row["steps"]) for row in csv.DictReader(file)
        }


def record(row):
    """Add a row to the table, which several processes may do at a time."""
    row["machine"] = processor()
    versions = keras.__version__, tf.__version__, np.__version__, platform.python_version()
    row["versions"] = "keras {}, tensorflow {}, numpy {}, python {}".format(*versions)
    with open(RUNS, "a+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def do(run, folder):
    """Do one run, or go on with it, in this process."""
    stage, gated, threads, seed, _ = run
    epoch = read_rows().get(tuple(run), 0) // 1875
    set_up(1000 * (seed + 1) + epoch if epoch else seed, threads)
    ((x, y), test_set), model, save = load_author(folder, Gated if gated else SGD)
    losses, drawings, started = [], [], time.time()

    def note(_, logs):
        losses.append(float(logs["classification_loss"]))
        drawings.append(float(logs["autoencoder_loss"]))
        if stage == "first_steps" and len(losses) == 400:
            measured(400)
            sys.exit()

    def measured(steps):
        row = dict(zip(RUN, run), steps=steps, seconds=round(time.time() - started, 1), **course(losses, drawings))
        row.update(zip(MEASURED, measure(model, *test_set)) if stage != "race" else {})
        record(dict(row, losses_sha256=hashlib.sha256(np.array(losses).tobytes()).hexdigest()))
        losses.clear()
        drawings.clear()

    watch = keras.callbacks.LambdaCallback(on_batch_end=note)
    options = {"batch_size": 32, "verbose": 0}
    if stage != "whole":
        chosen = np.arange(4800)  # 150 steps
        if stage != "race":
            chosen = np.tile(np.load(os.path.join(OUTPUT, "images.npy"))[seed], 40)
        model.fit(x[chosen], [part[chosen] for part in y], epochs=1, callbacks=[watch], **options)
        return measured(len(chosen) // 32)
    kept = os.path.join(ROOT, "outputs", "original", str(seed))
    if epoch:
        path = os.path.join(kept, f"MNIST_test_epoch_{epoch:02d}_model.hdf5")
        model = keras.models.load_model(path, custom_objects={"Gated": Gated})
    after = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: measured(1875 * (epoch + 1)))
    model.fit(x, y, epochs=20, initial_epoch=epoch, callbacks=[watch, save(kept, "MNIST_test"), after], **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("author", help="the folder that holds CNN_Autoencoder")
    parser.add_argument("--stage", choices=("race", "small", "whole", "first_steps"), required=True)
    parser.add_argument("--threads", type=int, choices=(0, 1), help="only the runs with this number of threads")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return do(args.run, args.author)
    os.makedirs(OUTPUT, exist_ok=True)
    program = [sys.executable, "-m", "experiments.authors_program.original", *sys.argv[1:]]
    (runs, steps), done = plan(args.stage), read_rows()
    left = [run for run in runs if done.get(tuple(run)) != steps and args.threads in (None, run[2])]
    with ThreadPoolExecutor(args.workers) as pool:
        commands = ([*program, "--run", json.dumps(run)] for run in left)
        if any(pool.map(subprocess.call, commands)):
            sys.exit("original.py: a run failed")


if __name__ == "__main__":
    main()
