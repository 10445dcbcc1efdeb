"""How strongly does each task pull at the six shared convolutions? Gradients along a training, at three weights.

    python experiments/pulls.py --workers 2      all runs: some two hours of a core
    python experiments/pulls.py --quick          two runs in miniature, in a minute

A run is one of the study (second_task.py) with all images, measured over its first 800 steps. The network recorded in
outputs/reference, seed 0 with the article's weight, is measured too, after its 20 epochs. Writes pulls.csv, after each
run, pulls_of_batches.csv and pulls.png. Stop it at any time: the same command goes on with it.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

if __name__ in ("__main__", "__mp_main__"):  # a worker loads this file, too
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

import keras
import numpy as np
import pandas
from one_run import origin, train_and_measure
from second_task import ALL_IMAGES, new_run

from data import InputError, load_data, make_targets, preprocess
from experiments.answer import markdown_table, new_figure
from model import CLASS_NUM
from support import cli
from support.backend import keras_settings, reseed
from support.files import atomic_write, locked
from support.fonts import picture_style
from train import BATCH_SIZE, EPOCHS, new_model
from visualize import save_figure

OUTPUT_DIR = Path("outputs/pulls")
QUICK_DIR = Path("outputs/pulls_quick")
RECORDED = ROOT / "outputs" / "reference" / "model.keras"  # 20 epochs with WEIGHTS[0], seed 0
CSV, CSV_RECORDED, PICTURE = "pulls.csv", "pulls_of_batches.csv", "pulls.png"
CLASSIFICATION = 0.9
WEIGHTS = (0.1, 1, 10)  # of the second task, beside CLASSIFICATION; the first is the article's
SEEDS = range(5)
STEPS = [0, 10, 25, 50, 100, 200, 400, 800]
BATCHES = 20  # of 32 training images, the same ones at each step; what is recorded are medians over them
BATCHES_RECORDED = 100  # of the recorded network, each for itself: by then no two are alike
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KEY = ["weight", "seed", "steps"]
FOUND = ["classification_pull", "autoencoder_pull", "ratio", "cosine"]
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
    for first, second in ((CLASSIFICATION, 0), (0, weight)):
        probe = new_model()
        weights = {"classification": first, "autoencoder": second}
        probe.compile(keras.optimizers.SGD(1.0), loss=probe.loss, loss_weights=weights)
        probes.append(probe)
    return probes


def pulls(probes, weights, images, labels):
    """Return a table, a row for each batch: the two pulls at the encoder, their ratio, the cosine of their angle."""
    found = []
    for number in range(len(images) // BATCH_SIZE):
        chosen = slice(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
        batch = preprocess(images[chosen])
        targets = make_targets(batch, labels[chosen], CLASS_NUM)
        targets = tuple(targets[name] for name in probes[0].output_names)
        first, second = (gradient(probe, weights, batch, targets, number) for probe in probes)
        norms = np.linalg.norm(first), np.linalg.norm(second)
        found.append((*norms, norms[0] / norms[1], first @ second / (norms[0] * norms[1])))
    return pandas.DataFrame(found, columns=FOUND)


def do(job):
    """Do a run, on a worker; returns its rows."""
    weight, seed, steps, batches = job
    train_set, test_set, _ = load_data()
    measured_on = [part[: batches * BATCH_SIZE] for part in train_set]
    run = new_run("pulls", (CLASSIFICATION, weight), seed, ALL_IMAGES, steps[-1], measured_at=steps)
    probes, rows = new_probes(weight), []
    for step, _, _, network in train_and_measure(run, train_set, [part[:BATCH_SIZE] for part in test_set]):
        found = pulls(probes, network.get_weights(), *measured_on).median().to_dict()
        rows.append({"weight": weight, "seed": seed, "steps": step, **found, **origin(1)})
    return rows


def do_recorded(batches):
    """Measure the recorded network, on a worker; returns a row for each batch."""
    images, labels = (part[: batches * BATCH_SIZE] for part in load_data()[0])
    return pulls(new_probes(WEIGHTS[0]), keras.saving.load_model(RECORDED).get_weights(), images, labels)


def tables(rows, recorded):
    """Return two Markdown tables: the ratio of the pulls, geometric means over the seeds; and after 20 epochs."""
    ratios = np.exp(np.log(rows["ratio"]).groupby([rows["steps"], rows["weight"]]).mean()).unstack()
    lines = [["steps", *(f"weight {weight:g}" for weight in ratios)]]
    lines += [[f"{steps:,}", *(f"{value:.2g}" for value in values)] for steps, *values in ratios.itertuples()]
    after = [[f"{quantile:.0%}".replace("%", " % of the batches below") for quantile in QUANTILES]]
    after.append([f"{value:.2g}" for value in recorded["ratio"].quantile(QUANTILES)])
    return markdown_table(*lines), markdown_table(*after)


def draw(rows, recorded):
    """Draw the ratio of the pulls and their angle over the steps, a thin line for each seed. Returns the figure."""
    figure, ((left, right),) = new_figure("How strongly does each task pull at the shared layers?", (12, 5), 1, 2)
    rows, recorded = (part.assign(angle=np.degrees(np.arccos(part["cosine"]))) for part in (rows, recorded))
    end = EPOCHS * ALL_IMAGES // BATCH_SIZE
    for axes, measure, none in ((left, "ratio", 1), (right, "angle", 90)):
        axes.axhline(none, color="black", linewidth=1)
        for weight, of_weight in rows.groupby("weight"):
            runs = of_weight.pivot(index="steps", columns="seed", values=measure)
            axes.plot(runs.index, runs, color=COLORS[weight], linewidth=0.6, alpha=0.7)
            mean = np.exp(np.log(runs).mean(axis=1))
            axes.plot(mean.index, mean, "o-", color=COLORS[weight], label=f"weight {weight:g}")
        least, *_, most = middle = recorded[measure].quantile(QUANTILES)
        axes.plot([end, end], [least, most], color=COLORS[WEIGHTS[0]])
        axes.plot(end, middle[0.5], "*", color=COLORS[WEIGHTS[0]], markersize=14)
        axes.set_xscale("symlog", linthresh=10)
        ticks = [*(step for step in sorted({*rows["steps"]}) if step != 25), end]
        axes.set_xticks(ticks, [f"{step:,}" for step in ticks], rotation=45)
        axes.minorticks_off()
        axes.set(xlabel="training steps (logarithmic from 10 on)", xlim=(0, 2 * end))
    left.set(yscale="log", ylim=(0.001, 1000), ylabel="classification's pull, in pulls of the reconstruction")
    left.yaxis.set_major_formatter("{x:g}")
    left.text(0.02, 0.02, "below 1: the reconstruction pulls harder", transform=left.transAxes, fontsize=11)
    left.legend(fontsize=11, ncols=3, title="thick: mean of the seeds")
    right.set(ylabel="angle between the two, in degrees", ylim=(30, 150))
    right.set_yticks(range(30, 151, 30))
    star = {"transform": right.transAxes, "fontsize": 11, "ha": "right"}
    right.text(0.98, 0.02, "star: after 20 epochs, one seed; its bar has 90 % of the batches", **star)
    return figure


def write(path, rows):
    """Write a table as CSV, whole."""
    with atomic_write(path) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def read(path, columns):
    """Read a table that write() wrote, without rows if there is none. Raises InputError if a column is missing."""
    if not path.exists():
        return pandas.DataFrame(columns=columns)
    try:
        rows = pandas.read_csv(path)
        rows[columns]
    except (KeyError, ValueError):  # pandas' own errors are such ones too
        raise InputError(f"{path}: damaged, not what this program wrote; mend it, or move it away") from None
    return rows


def measure_all(folder, workers, quick):
    """Do what is not yet recorded in a folder; returns both tables, as they are read again."""
    path, path_recorded = folder / CSV, folder / CSV_RECORDED
    rows, recorded = read(path, [*KEY, *FOUND]), read(path_recorded, FOUND)
    done = set(zip(rows["weight"], rows["seed"]))
    jobs = [(weight, seed, STEPS, BATCHES) for seed in SEEDS for weight in WEIGHTS]
    if quick:
        jobs = [(weight, seed, [0, 2], 2) for weight, seed, *_ in jobs[:2]]
    jobs = [job for job in jobs if job[:2] not in done]
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}  # of the workers
    ignore = signal.SIGINT, signal.SIG_IGN  # Ctrl-C is for this process, which ends the workers
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore, maxtasksperchild=1) as pool:
        if recorded.empty:
            write(path_recorded, pool.apply(do_recorded, [2 if quick else BATCHES_RECORDED]))
        for found in pool.imap_unordered(do, jobs):
            rows = pandas.concat([rows, pandas.DataFrame(found)]) if len(rows) else pandas.DataFrame(found)
            write(path, rows.sort_values(KEY))
            print("weight {weight:g}, seed {seed}: done".format(**found[0]), flush=True)
    return read(path, [*KEY, *FOUND]), read(path_recorded, FOUND)


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    parser.add_argument("--quick", action="store_true", help=f"two runs of two steps, in {QUICK_DIR}")
    parser.add_argument("--workers", type=cli.number(int, 1), default=1, help="runs at a time (default: 1)")
    args = parser.parse_args(argv)
    if args.quick and args.output_dir == OUTPUT_DIR:
        args.output_dir = QUICK_DIR
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(args.output_dir / ".lock", "pulls.py"):
        rows, recorded = measure_all(args.output_dir, args.workers, args.quick)
    with picture_style():
        save_figure(draw(rows, recorded), args.output_dir / PICTURE)
    print(*tables(rows, recorded), f"Wrote {CSV}, {CSV_RECORDED} and {PICTURE} to {args.output_dir}.", sep="\n\n")


if __name__ == "__main__":
    cli.start(main)
