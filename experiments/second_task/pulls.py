"""How strongly does each task pull at the six shared convolutions? Gradients along a training, at three weights.

    python -m experiments.second_task.pulls --workers 2 --threads 1      all runs: some two hours of a core

A run is one of the study (runs.py) with all images, measured over its first 800 steps. The network recorded in
outputs/reference, seed 0 with the article's weight, is measured too, after its 20 epochs. Writes pulls.csv, after each
run, pulls_of_batches.csv and pulls.png. Stop it at any time: the same command goes on with it.
"""

if __name__ in ("__main__", "__mp_main__"):  # a worker of Dask's loads this file, too
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

from pathlib import Path

import keras
import numpy as np
import pandas

from data import load_data
from experiments import jobs
from experiments.second_task.answer import markdown_table, new_figure
from experiments.second_task.runs import ALL_IMAGES, new_run, origin, train_and_measure
from experiments.steps import train_steps
from support import cli
from support.backend import reseed
from support.drawing import picture_style, save_figure
from support.errors import InputError
from support.files import atomic_write, locked
from train import BATCH_SIZE, EPOCHS, new_model

OUTPUT_DIR = Path("outputs/pulls")
RECORDED = jobs.ROOT / "outputs" / "reference" / "model.keras"  # 20 epochs with WEIGHTS[0], seed 0
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


def gradient(probe, weights, images, labels, number):
    """Return the gradient of the encoder's weights, one array, that a probe with these weights takes of a batch.

    A probe is a network that is compiled for plain gradient descent with a learning rate of 1: a step moves the weights
    by just the gradient. number: of the batch, and of its Dropout masks.
    """
    probe.set_weights(weights)
    encoder = [weight for layer in probe.layers if layer.name.startswith("conv") for weight in layer.weights]
    before = [weight.numpy() for weight in encoder]
    batch = np.arange(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
    next(train_steps(probe, images, labels, [batch], lambda step: reseed(probe, 0, number)))
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
        first, second = (gradient(probe, weights, images, labels, number) for probe in probes)
        norms = np.linalg.norm(first), np.linalg.norm(second)
        found.append((*norms, norms[0] / norms[1], first @ second / (norms[0] * norms[1])))
    return pandas.DataFrame(found, columns=FOUND)


def plan():
    """Return the jobs: the batches of the recorded network, and of each run the weight, the seed, steps and batches."""
    runs = [
        {"weight": weight, "seed": seed, "steps": STEPS, "batches": BATCHES} for seed in SEEDS for weight in WEIGHTS
    ]
    return [{"batches": BATCHES_RECORDED}, *runs]


def do_job(job, threads):
    """Do a job of plan(); returns its rows: of a run one for each of its steps, of the recorded network one a batch."""
    train_set, test_set, _ = load_data()
    measured_on = [part[: job["batches"] * BATCH_SIZE] for part in train_set]
    if "weight" not in job:
        weights = keras.saving.load_model(RECORDED).get_weights()
        return pulls(new_probes(WEIGHTS[0]), weights, *measured_on).to_dict("records")
    arm, steps = f"{CLASSIFICATION} {job['weight']}", job["steps"]
    run = new_run("pulls", arm, job["seed"], ALL_IMAGES, steps[-1], measured_at=steps)
    probes, rows = new_probes(job["weight"]), []
    for step, _, _, network in train_and_measure(run, train_set, [part[:BATCH_SIZE] for part in test_set]):
        found = pulls(probes, network.get_weights(), *measured_on).median().to_dict()
        rows.append({"weight": job["weight"], "seed": job["seed"], "steps": step, **found, **origin(threads)})
    return rows


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


def main(argv=None, planned=None):
    """The program. planned: the jobs, by default plan()."""
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    args = jobs.parse_args(parser, argv)
    if args.job:
        return jobs.answer(args.job, do_job)
    folder = args.output_dir
    with locked(folder / ".lock", "pulls.py"):
        rows, recorded = read(folder / CSV, [*KEY, *FOUND]), read(folder / CSV_RECORDED, FOUND)
        done = {*zip(rows["weight"], rows["seed"]), *([None] if len(recorded) else [])}

        def key(job):
            return (job["weight"], job["seed"]) if "weight" in job else None

        def record(found):
            nonlocal rows
            found = pandas.DataFrame(found)
            if "weight" not in found:
                return write(folder / CSV_RECORDED, found)
            rows = pandas.concat([rows, found]) if len(rows) else found
            write(folder / CSV, rows.sort_values(KEY))

        if tasks := [[job] for job in planned or plan() if key(job) not in done]:
            jobs.do_tasks("experiments.second_task.pulls", tasks, args, record)
        rows, recorded = read(folder / CSV, [*KEY, *FOUND]), read(folder / CSV_RECORDED, FOUND)
        with picture_style():
            save_figure(draw(rows, recorded), folder / PICTURE)
    print(*tables(rows, recorded), f"Wrote {CSV}, {CSV_RECORDED} and {PICTURE} to {folder}.", sep="\n\n")


if __name__ == "__main__":
    cli.start(main)
