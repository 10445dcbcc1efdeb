"""The author's program beside ours: makes our runs of stages 0 and 2, and the tables and the chart of docs/faithful.md.

    python experiments/faithful.py --make 0          20 seeds of 150 steps, with and without the original's cut at 1e-7
    python experiments/faithful.py --make 2          part B's runs with both tasks, 16 seeds of 1,250 steps
    python experiments/faithful.py                   the tables, summary.json, errors.png

experiments/original.py makes the author's runs. What is recorded is not made again. Needs experiments/requirements.txt.
"""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import pandas
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

if __name__ == "__main__":
    import support.quiet  # noqa: F401 - first: it loads Keras without TensorFlow's greeting

import keras
from matplotlib.figure import Figure
from one_run import choose_images
from second_task import BOTH, new_run

from data import epoch_order, load_data, make_targets, preprocess
from evaluate import ARTICLE_ACCURACY, compute_metrics
from support import cli
from support.backend import keras_settings, reseed, run_network
from support.files import locked, write_json
from support.fonts import picture_style
from support.run_folder import environment, processor, read_history
from train import BATCH_SIZE, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, new_model
from visualize import save_figure

OUTPUT_DIR = Path("outputs/reference/original")
CUT = 1e-7  # Keras 2.1.2 takes no logarithm of a smaller probability
LEFT = 5  # as in original.py
STAGE_0_SEEDS, STAGE_2_SEEDS = range(200, 220), range(16)
# Planned before the first run of stage 2: within these ratios both programs count as the same.
MARGINS = {"errors": 1.15, "classification_loss": 1.2, "autoencoder_loss": 1.15}
SEEDS = ["outputs/reference", "outputs/reference/seeds/1", "outputs/reference/seeds/2"]
SEEDS += [f"outputs/reference/second_task/A/A-0.9-0.1-seed{seed}" for seed in (3, 4)]


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


def make(stage, seed, cut):
    """Do one of our runs; returns its row."""
    (images, labels), (test_images, test_labels), class_names = load_data()
    network, started = new_network(seed, cut), time.perf_counter()
    if stage == 0:
        indices = epoch_order(150 * BATCH_SIZE, seed, 0).reshape(150, -1)
    else:
        indices = choose_images(new_run("B", BOTH, seed, 1000, 1250), labels)[0]
    reseed(network, seed, 0)
    losses = []
    for chosen in indices:
        x = preprocess(images[chosen])
        targets = make_targets(x, labels[chosen], len(class_names))
        with keras_settings():
            network.reset_metrics()
            logs = network.train_on_batch(x, tuple(targets[name] for name in network.output_names), return_dict=True)
        losses.append(float(logs["classification_loss"]))
    above = np.greater(losses, LEFT)
    outputs = run_network(network, test_images)
    found = compute_metrics(test_images, test_labels, outputs)
    of_truth = outputs["classification"][np.arange(len(test_labels)), test_labels].astype(np.float64)
    on = environment()
    return {
        "stage": stage, "cut": int(cut), "seed": seed, "steps": len(indices), "errors": found["errors"],
        "classification_loss": -np.log(of_truth.clip(CUT, 1 - CUT)).mean(), "uncut_loss": found["classification_loss"],
        "autoencoder_loss": found["autoencoder_loss"], "left_in": int(above.argmax()) + 1 if above.any() else "",
        "above_5": int(above.sum()), "at_the_end": np.mean(losses[-10:]),
        "losses_sha256": hashlib.sha256(np.array(losses).tobytes()).hexdigest(),
        "seconds": round(time.perf_counter() - started, 1), "machine": processor(), "device": on.pop("device"),
        "versions": ", ".join(f"{name} {value}" for name, value in on.items()),
    }  # fmt: skip


def make_all(stage, seeds, folder):
    """Do our runs of a stage that are not in ours.csv yet, and add them there."""
    path = folder / "ours.csv"
    for seed in seeds:
        for cut in (False, True) if stage == 0 else (False,):
            rows = read(path)
            if not ((rows["stage"] == stage) & (rows["cut"] == int(cut)) & (rows["seed"] == seed)).any():
                row = pandas.DataFrame([make(stage, seed, cut)])
                with locked(folder / ".lock"):
                    row.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.12g")
                print(row[["stage", "cut", "seed", "errors", "at_the_end"]].to_string(header=False), flush=True)


def read(path):
    """Return a table of runs, without rows if there is none yet."""
    columns = ["stage", "cut", "gated", "threads", "seed", "steps", "above_5", "at_the_end", "losses_sha256"]
    return pandas.read_csv(path) if path.exists() else pandas.DataFrame(columns=columns)


def equivalence(ours, theirs, margin):
    """Test by two one-sided Welch tests whether the ratio of two geometric means lies between 1 / margin and margin.

    Returns a dict: the ratio theirs to ours, its 90 % interval, and the greater p of the two tests.
    """
    first, second = np.log(ours), np.log(theirs)
    difference, limit = second.mean() - first.mean(), np.log(margin)
    parts = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    error = np.sqrt(sum(parts))
    freedom = error**4 / (parts[0] ** 2 / (len(first) - 1) + parts[1] ** 2 / (len(second) - 1))
    half = stats.t.ppf(0.95, freedom) * error
    p = max(stats.t.sf((difference + limit) / error, freedom), stats.t.cdf((difference - limit) / error, freedom))
    ratio, low, high = np.exp([difference, difference - half, difference + half]).tolist()
    return {"ratio": ratio, "low": low, "high": high, "margin": margin, "p": float(p)}


def deaths(theirs, ours):
    """Return stage 0 as rows: of each group of runs, how many ended alike, left the path, came back, are dead."""
    again = theirs["seed"] == 102
    groups = []
    for name, rows in (("one seed", theirs[again]), ("20 seeds", theirs[~again])):
        for (threads, gated), of_group in rows.groupby(["threads", "gated"]):
            which = f"the author's, {'gated' if gated else 'as written'}"
            groups.append((f"{which}, {name}", "1" if threads else "default", of_group))
    for cut, of_group in ours.groupby("cut"):
        groups.append((f"ours{', cut at 1e-7' if cut else ''}, 20 seeds", "default", of_group))
    found = []
    for name, threads, rows in groups:
        left, dead = rows["above_5"] > 0, rows["at_the_end"] > LEFT
        row = {"program": name, "threads": threads, "runs": len(rows), "ends": rows["losses_sha256"].nunique()}
        found.append({**row, "left": int(left.sum()), "back": int((left & ~dead).sum()), "dead": int(dead.sum())})
    return found


def stage_0(folder):
    """Return deaths() of the runs that are recorded in a folder."""
    return deaths(*(rows[rows["stage"] == 0] for rows in map(read, (folder / "runs.csv", folder / "ours.csv"))))


def table(found):
    """Return deaths() as a Markdown table."""
    lines = ["| | threads | runs | different ends | left the path | came back | dead |", "|" + 7 * " --- |"]
    text = "| {program} | {threads} | {runs} | {ends} | {left} | {back} | {dead} |"
    return "\n".join([*lines, *(text.format(**one) for one in found)])


def draw_errors(theirs):
    """Draw the errors over 20 epochs: our five seeds as a band, the author's program as lines, the article's 67."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    histories = [read_history(ROOT / folder) for folder in SEEDS]
    ours = np.array([[1 - row["val_classification_accuracy"] for row in history] for history in histories])
    epochs = np.arange(1, ours.shape[1] + 1)
    wrong = 10_000 * ours
    band = {"color": "tab:blue", "alpha": 0.3, "label": "ours, five seeds"}
    axes.fill_between(epochs, wrong.min(axis=0), wrong.max(axis=0), **band)
    for seed, run in theirs.groupby("seed"):
        label = "the author's program, a line a run" if seed == theirs["seed"].min() else None
        axes.plot(run["steps"] / 1875, run["errors"], color="tab:orange", linewidth=1.2, label=label)
    axes.axhline(10_000 * (1 - ARTICLE_ACCURACY), color="black", linestyle="--", linewidth=1, label="the article, 67")
    axes.set(xlabel="epoch", ylabel="errors in 10,000 test images", yscale="log", xticks=epochs)
    axes.set_yticks([50, 70, 100, 150, 200, 300], ["50", "70", "100", "150", "200", "300"], minor=False)
    axes.minorticks_off()
    axes.legend()
    return figure


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    parser.add_argument("--make", type=int, choices=(0, 2), help="do our runs of this stage")
    parser.add_argument("--seeds", type=int, nargs="+", help="of these seeds only")
    args = parser.parse_args(argv)
    folder = args.output_dir
    if args.make is not None:
        make_all(args.make, args.seeds or (STAGE_2_SEEDS if args.make else STAGE_0_SEEDS), folder)
        return
    theirs, ours = (read(folder / name) for name in ("runs.csv", "ours.csv"))
    summary = {"stage 0": stage_0(folder)}
    print(table(summary["stage 0"]))
    a, b = (rows[rows["stage"] == 2].sort_values("seed") for rows in (ours, theirs))
    if len(a) > 1 and len(b) > 1:
        summary["stage 2"] = {"ours": len(a), "theirs": len(b)}
        for measure, margin in MARGINS.items():
            found = equivalence(a[measure].to_numpy(float), b[measure].to_numpy(float), margin)
            summary["stage 2"][measure] = found
            text = "{0:20} ratio {ratio:.3f}, 90 % {low:.3f} to {high:.3f}, margin {margin}, p {p:.2g}"
            print(text.format(measure, **found))
    epochs = theirs[theirs["stage"] == 3]
    if len(epochs):
        late = epochs[epochs["steps"] > 10 * 1875].groupby("seed")["errors"].mean()
        last = epochs[epochs["steps"] == 37_500]["errors"].tolist()
        summary["stage 3"] = {"last": last, "epochs 11 to 20": late.tolist()}
        print(summary["stage 3"])
        with picture_style():
            save_figure(draw_errors(epochs), folder / "errors.png")
    write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    cli.start(main)
