"""Our runs beside the author's program: the same stages as in original.py, and one more.

    python -m experiments.authors_program.ours race           20 seeds of 150 steps, with and without the cut at 1e-7
    python -m experiments.authors_program.ours small          part B's runs with both tasks, 16 seeds of 1,250 steps
    python -m experiments.authors_program.ours first_steps    the first 400 steps of these
    python -m experiments.authors_program.ours same_numbers   the same, with the random numbers of the author's program

Adds rows to outputs/reference/original/ours.csv. What is recorded is not made again. Of the stage whole, the runs of
train.py are ours. Needs experiments/requirements.txt.
"""

if __name__ == "__main__":
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

import hashlib
import time
from pathlib import Path

import keras
import numpy as np
import pandas

from data import epoch_order, load_data
from evaluate import compute_metrics, run_network
from experiments.authors_program import random_numbers
from experiments.authors_program.shared import CUT, course
from experiments.jobs import ROOT
from experiments.second_task.runs import BOTH, choose_images, new_run
from experiments.steps import train_steps
from support import cli
from support.backend import reseed
from support.environment import environment, processor
from support.files import locked
from train import BATCH_SIZE, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, new_model

OUTPUT_DIR = Path("outputs/reference/original")
SEEDS = {"race": range(200, 220), "small": range(16), "first_steps": range(16), "same_numbers": range(16)}


def cut_cross_entropy(truth, probabilities):
    """Return the cross-entropy of each image as Keras 2.1.2 takes it, from probabilities cut off at 1e-7."""
    probabilities = probabilities / keras.ops.sum(probabilities, axis=-1, keepdims=True)
    return -keras.ops.sum(truth * keras.ops.log(keras.ops.clip(probabilities, CUT, 1 - CUT)), axis=-1)


def new_network(seed, cut):
    """Return the network as train.py makes it, or with the original's loss."""
    network = new_model(seed)
    if cut:
        optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
        losses = {"classification": cut_cross_entropy, "autoencoder": "mean_squared_error"}
        network.compile(optimizer, losses, loss_weights=LOSS_WEIGHTS)
    return network


def do_run(stage, seed, cut):
    """Do one of our runs; returns its row, a dict."""
    (images, labels), (test_images, test_labels), _ = load_data()
    network, started, next_masks = new_network(seed, cut), time.perf_counter(), None
    if stage == "race":
        indices = epoch_order(150 * BATCH_SIZE, seed, 0)
    elif stage == "same_numbers":
        next_masks, random = random_numbers.take(network, seed)
        indices = random_numbers.shuffled(random, np.tile(np.load(ROOT / OUTPUT_DIR / "images.npy")[seed], 40))
    else:
        indices = choose_images(new_run("B", BOTH, seed, 1000, 1250), labels)[0]
    indices = indices.reshape(-1, BATCH_SIZE)[: 400 if stage in ("first_steps", "same_numbers") else None]
    reseed(network, seed, 0)
    steps = train_steps(network, images, labels, indices, lambda step: next_masks and next_masks())
    losses, drawings = zip(*((step["classification_loss"], step["autoencoder_loss"]) for step in steps))
    outputs = run_network(network, test_images)
    found = compute_metrics(test_images, test_labels, outputs)
    of_truth = outputs["classification"][np.arange(len(test_labels)), test_labels].astype(np.float64)
    on = environment()
    return {
        "stage": stage, "cut": int(cut), "seed": seed, "steps": len(losses), "errors": found["errors"],
        "classification_loss": -np.log(of_truth.clip(CUT, 1 - CUT)).mean(), "uncut_loss": found["classification_loss"],
        "autoencoder_loss": found["autoencoder_loss"], **course(losses, drawings),
        "losses_sha256": hashlib.sha256(np.array(losses).tobytes()).hexdigest(),
        "seconds": round(time.perf_counter() - started, 1), "machine": processor(), "device": on.pop("device"),
        "versions": ", ".join(f"{name} {value}" for name, value in on.items() if value),
    }  # fmt: skip


def read(path):
    """Return a table of runs, of ours or of the author's program, without rows if there is none yet."""
    columns = ["stage", "cut", "gated", "threads", "seed", "steps", "above_5", "at_the_end", "drew_in", "losses_sha256"]
    return pandas.read_csv(path) if path.exists() else pandas.DataFrame(columns=columns)


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    parser.add_argument("stage", choices=SEEDS)
    parser.add_argument("--seeds", type=int, nargs="+", help="of these seeds only")
    args = parser.parse_args(argv)
    path = args.output_dir / "ours.csv"
    for seed in args.seeds or SEEDS[args.stage]:
        for cut in (False, True) if args.stage in ("race", "same_numbers") else (False,):
            rows = read(path)
            if not ((rows["stage"] == args.stage) & (rows["cut"] == cut) & (rows["seed"] == seed)).any():
                row = pandas.DataFrame([do_run(args.stage, seed, cut)])
                with locked(path.with_name(".lock")):
                    row.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.12g")
                print(row[["stage", "cut", "seed", "errors", "at_the_end"]].to_string(header=False), flush=True)


if __name__ == "__main__":
    cli.start(main)
