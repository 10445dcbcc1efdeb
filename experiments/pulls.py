"""How strongly does each task pull at the six shared convolutions? Gradients along a training, at three weights.

    python experiments/pulls.py --workers 2      all runs: some two hours of a core
    python experiments/pulls.py --quick          two runs in miniature, in a minute

A run is one of the study (second_task.py) with all images, measured over its first 800 steps. The network recorded in
outputs/reference, seed 0 with the article's weight, is measured too, after its 20 epochs. Writes pulls.csv, after each
run, and pulls.png. Stop it at any time: the same command goes on with it.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

if __name__ in ("__main__", "__mp_main__"):  # a worker loads this file, too
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import keras
import numpy as np
import pandas
from one_run import origin, train_and_measure
from second_task import ALL_IMAGES, new_run

from data import load_data, make_targets, preprocess
from experiments.answer import markdown_table, new_figure
from support import cli
from support.backend import keras_settings, reseed
from support.files import atomic_write
from support.fonts import picture_style
from train import BATCH_SIZE, EPOCHS, new_model
from visualize import save_figure

OUTPUT_DIR = Path("outputs/pulls")
QUICK_DIR = Path("outputs/pulls_quick")
RECORDED = ROOT / "outputs" / "reference" / "model.keras"  # 20 epochs with WEIGHTS[0], seed 0
CSV, PICTURE = "pulls.csv", "pulls.png"
CLASSIFICATION = 0.9
WEIGHTS = (0.1, 1, 10)  # of the second task, beside CLASSIFICATION; the first is the article's
SEEDS = range(5)
STEPS = [0, 10, 25, 50, 100, 200, 400, 800]
BATCHES = 20  # of 32 training images, the same ones at each step; what is recorded are medians over them
KEY = ["weight", "seed", "steps"]
COLORS = dict(zip(WEIGHTS, ("tab:green", "tab:orange", "tab:red")))


def gradient(probe, weights, batch, targets, epoch):
    """Return the gradient of the encoder's weights, one array, that a step of a probe with these weights takes.

    A probe is a network that is compiled for plain gradient descent with a learning rate of 1: a step moves the weights
    by just the gradient. epoch: of the Dropout masks.
    """
    probe.set_weights(weights)
    reseed(probe, 0, epoch)
    encoder = [weight for layer in probe.layers if layer.name.startswith("conv") for weight in layer.weights]
    before = [weight.numpy() for weight in encoder]
    with keras_settings():
        probe.train_on_batch(batch, targets)
    return np.concatenate([np.ravel(old - new.numpy()) for old, new in zip(before, encoder, strict=True)])


def new_probes(weight):
    """Return two probes: of the classification's loss alone and of the reconstruction's, each with its weight."""
    probes = []
    for weights in ((CLASSIFICATION, 0), (0, weight)):
        probe = new_model(loss_weights=dict(zip(("classification", "autoencoder"), weights)))
        probe.compile(keras.optimizers.SGD(1.0), loss=probe.loss, loss_weights=list(weights))
        probes.append(probe)
    return probes


def pulls(probes, weights, images, labels):
    """Return the two pulls at the encoder, their ratio, and the cosine of their angle: medians over the batches."""
    found = []
    for number in range(len(images) // BATCH_SIZE):
        chosen = slice(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
        batch = preprocess(images[chosen])
        targets = tuple(make_targets(batch, labels[chosen], 10)[name] for name in probes[0].output_names)
        first, second = (gradient(probe, weights, batch, targets, number) for probe in probes)
        norms = np.linalg.norm(first), np.linalg.norm(second)
        found.append((*norms, norms[0] / norms[1], first @ second / (norms[0] * norms[1])))
    medians = np.median(np.float64(found), axis=0).tolist()
    return dict(zip(("classification_pull", "autoencoder_pull", "ratio", "cosine"), medians))


def do(job):
    """Do a run, on a worker; returns its rows. The first run measures the recorded network, too."""
    weight, seed, steps, batches = job
    train_set, test_set, _ = load_data()
    measured_on = [part[: batches * BATCH_SIZE] for part in train_set]
    run = new_run("pulls", (CLASSIFICATION, weight), seed, ALL_IMAGES, steps[-1], measured_at=steps)
    probes, rows = new_probes(weight), []

    def add(step, network):
        found = pulls(probes, network.get_weights(), *measured_on)
        rows.append({"weight": weight, "seed": seed, "steps": step, **found, **origin(1)})

    for step, _, _, network in train_and_measure(run, train_set, [part[:BATCH_SIZE] for part in test_set]):
        add(step, network)
    if (weight, seed) == (WEIGHTS[0], SEEDS[0]):
        add(EPOCHS * ALL_IMAGES // BATCH_SIZE, keras.saving.load_model(RECORDED))
    return rows


def table(rows):
    """Return how many times the classification pulls as strongly, geometric means over the seeds, as Markdown."""
    ratios = np.exp(np.log(rows["ratio"]).groupby([rows["steps"], rows["weight"]]).mean()).unstack()
    lines = [["steps", *(f"weight {weight:g}" for weight in ratios)]]
    for steps, *values in ratios.itertuples():
        lines.append([f"{steps:,}", *("" if np.isnan(value) else f"{value:.2g}" for value in values)])
    return markdown_table(*lines)


def draw(rows):
    """Draw the ratio of the pulls and their angle over the steps, a thin line for each seed. Returns the figure."""
    figure, ((left, right),) = new_figure("How strongly does each task pull at the shared layers?", (12, 5), 1, 2)
    rows = rows.assign(angle=np.degrees(np.arccos(rows["cosine"])))
    for axes, measure, none in ((left, "ratio", 1), (right, "angle", 90)):
        axes.axhline(none, color="black", linewidth=1)
        for weight, of_weight in rows.groupby("weight"):
            look = {"color": COLORS[weight], "label": f"weight {weight:g}"}
            runs = of_weight[of_weight["steps"] <= STEPS[-1]].pivot(index="steps", columns="seed", values=measure)
            middle = np.exp(np.log(runs).mean(axis=1))
            axes.plot(runs.index, runs, color=look["color"], linewidth=0.6, alpha=0.7)
            axes.plot(middle.index, middle, "o-", **look)
            last = of_weight[of_weight["steps"] > STEPS[-1]]
            axes.plot(last["steps"], last[measure], "*", color=look["color"], markersize=14)
        axes.set_xscale("symlog", linthresh=10)
        ticks = sorted({*rows["steps"]} - {25})
        axes.set_xticks(ticks, [f"{step:,}" for step in ticks], rotation=45)
        axes.minorticks_off()
        axes.set(xlabel="training steps (logarithmic from 10 on)", xlim=(0, None))
    left.set(yscale="log", ylabel="classification's pull, in pulls of the reconstruction")
    left.yaxis.set_major_formatter("{x:g}")
    left.text(0.02, 0.02, "below 1: the reconstruction pulls harder", transform=left.transAxes, fontsize=11)
    left.legend(fontsize=11, title="thick: mean of the seeds; star: after 20 epochs, one seed")
    right.set(ylabel="angle between the two, in degrees", ylim=(0, 180))
    right.set_yticks(range(0, 181, 30))
    return figure


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    parser.add_argument("--quick", action="store_true", help=f"two runs of two steps, in {QUICK_DIR}")
    parser.add_argument("--workers", type=cli.number(int, 1), default=1, help="runs at a time (default: 1)")
    args = parser.parse_args(argv)
    if args.quick and args.output_dir == OUTPUT_DIR:
        args.output_dir = QUICK_DIR
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / CSV
    rows = pandas.read_csv(path) if path.exists() else pandas.DataFrame(columns=KEY)
    done = set(zip(rows["weight"], rows["seed"]))
    jobs = [(weight, seed, STEPS, BATCHES) for seed in SEEDS for weight in WEIGHTS if (weight, seed) not in done]
    if args.quick:
        jobs = [(weight, seed, [0, 2], 2) for weight, seed, *_ in jobs[:2]]
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}  # of the workers
    ignore = signal.SIGINT, signal.SIG_IGN  # Ctrl-C is for this process, which ends the workers
    with multiprocessing.get_context("spawn").Pool(args.workers, signal.signal, ignore, maxtasksperchild=1) as pool:
        for found in pool.imap_unordered(do, jobs):
            rows = pandas.concat([rows, pandas.DataFrame(found)]) if len(rows) else pandas.DataFrame(found)
            with atomic_write(path) as temporary:
                rows.sort_values(KEY).to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
            print("weight {weight:g}, seed {seed}: done".format(**found[0]), flush=True)
    with picture_style():
        save_figure(draw(rows), args.output_dir / PICTURE)
    print(f"{table(rows)}\n\nWrote {CSV} and {PICTURE} to {args.output_dir}.")


if __name__ == "__main__":
    cli.start(main)
