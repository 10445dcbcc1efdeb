"""Make of the recorded runs of the second task an answer: summary.json, one chart a question, and tables.

    python experiments/answer.py --output-dir outputs/reference/second_task

experiments/second_task.py does the same when its runs are done. Two arms are compared seed by seed: the
interval is Student's t over the paired differences, at 95 %.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cli  # first, for it loads Keras without TensorFlow's greeting

from data import InputError
from evaluate import ARTICLE_ACCURACY
from experiments.second_task import OUTPUT_DIR, RUNS, SPEED_WEIGHTS, name_of, read_runs
from files import write_json
from run_folder import read_history
from train import BATCH_SIZE
from visualize import save_figure

SUMMARY = "summary.json"
MEASURES = ("errors", "classification_loss", "autoencoder_loss")
LEVEL = 0.95
POWER = 0.8  # an effect of this size would have been seen in four studies of five
ALONE = 0.0  # the reconstruction's weight, where the classifier is alone
FIRST, LAST = 5, 10  # epochs over which the errors are averaged, for those of one epoch are a matter of luck
EPOCHS_SHOWN = (1, 2, 3, 5, 10, 15, 20)


def named(weights):
    """Return a pair of weights as the summary names it: "0.9 0.1"."""
    return "{:g} {:g}".format(*weights)


def interval(values):
    """Return mean, standard error, and Student's interval at LEVEL, of independent values, at least 2."""
    values = np.asarray(values, float)
    count, mean = len(values), values.mean()
    error = values.std(ddof=1) / np.sqrt(count)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * error
    return {"runs": count, "mean": mean, "standard_error": error, "from": mean - half, "to": mean + half}


def extremes(values):
    """Return the least and the greatest of values."""
    values = np.asarray(values)
    return {"least": values.min().item(), "greatest": values.max().item()}


def difference(values, baseline):
    """Return interval() of paired differences, and two numbers more.

    `less`: in how many pairs the value is the smaller one; `visible_effect`: the size of an effect that would have
    been seen with POWER.
    """
    differences = np.subtract(values, baseline)
    estimate = {**interval(differences), "less": int((differences < 0).sum())}
    freedom = estimate["runs"] - 1
    quantiles = stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(POWER, freedom)
    return {**estimate, "visible_effect": quantiles * estimate["standard_error"]}


def by_weights(rows, part, steps=None):
    """Return a part's rows by weights, then by seed; only seeds that every weight has, for they are compared."""
    arms = {}
    for row in rows:
        if row["part"] == part and steps in (None, row["steps"]):
            weights = row["classification_weight"], row["autoencoder_weight"]
            arms.setdefault(weights, {})[row["seed"]] = row
    shared = set.intersection(*map(set, arms.values())) if arms else set()
    return {weights: {seed: seeds[seed] for seed in sorted(shared)} for weights, seeds in sorted(arms.items())}


def compare(arms):
    """Return the means of each arm, and its paired differences from the classifier alone."""
    alone = next(seeds for (_, weight), seeds in arms.items() if weight == ALONE)
    comparison = {}
    for (_, weight), seeds in arms.items():
        measures = comparison[f"{weight:g}"] = {}
        for name in MEASURES:
            values = [row[name] for row in seeds.values()]
            measures[name] = {**interval(values), **extremes(values)}
            if weight != ALONE and name != "autoencoder_loss":
                measures[name]["difference"] = difference(values, [row[name] for row in alone.values()])
    return comparison


def values_over_epochs(rows, folder, name):
    """Return a column of part A's history.csv: by the reconstruction's weight, an array (seeds, epochs)."""
    curves = {}
    for (_, weight), seeds in by_weights(rows, "A").items():
        histories = [read_history(folder / "A" / name_of(row)) for row in seeds.values()]
        curves[weight] = np.array([[epoch[name] for epoch in history] for history in histories])
    return curves


def errors_over_epochs(rows, folder):
    """Return part A's test errors after every epoch: by the reconstruction's weight, an array (seeds, epochs)."""
    images = {row["autoencoder_weight"]: row["test_images"] for row in rows if row["part"] == "A"}
    accuracies = values_over_epochs(rows, folder, "val_classification_accuracy")
    return {weight: np.rint(images[weight] * (1 - right)).astype(int) for weight, right in accuracies.items()}


def shares_of_untrained(rows):
    """Return part C's losses as shares of their untrained values: by (weights, loss), steps and (seeds, steps)."""
    rows = [row for row in rows if row["part"] == "C"]
    steps = sorted({row["steps"] for row in rows})
    shares = {}
    for weights, seeds in by_weights(rows, "C", steps[0]).items() if rows else ():
        for loss in ("classification_loss", "autoencoder_loss"):
            values = [[by_weights(rows, "C", step)[weights][seed][loss] for step in steps] for seed in seeds]
            shares[weights, loss] = steps, np.array(values) / np.array(values)[:, :1]
    return shares


def compare_epochs(curves):
    """Return part A's errors over the epochs, from errors_over_epochs(): means, paired differences, and spread."""
    comparison = {
        "errors": {f"{weight:g}": curve.mean(axis=0).tolist() for weight, curve in curves.items()},
        "difference": [difference(both, alone) for both, alone in zip(curves[0.1].T, curves[ALONE].T)],
        # Standard deviations of the errors: from seed to seed, and from epoch to epoch within a run.
        "seeds_deviate": float(np.mean([curve[:, -1].std(ddof=1) for curve in curves.values()])),
        "last_deviate": float(np.mean([curve[:, -LAST:].std(axis=1, ddof=1).mean() for curve in curves.values()])),
    }
    for name, epochs in (("first", slice(FIRST)), ("last", slice(-LAST, None))):
        means = {weight: curve[:, epochs].mean(axis=1) for weight, curve in curves.items()}
        comparison[name] = {
            f"{weight:g}": {**interval(values), **extremes(curves[weight][:, epochs])}
            for weight, values in means.items()
        }
        comparison[f"{name}_difference"] = difference(means[0.1], means[ALONE])
    return comparison


def compare_ends(rows):
    """Return what part C's weights lead to at the end: means, and the paired differences of the two."""
    last = max(row["steps"] for row in rows if row["part"] == "C")
    arms = by_weights(rows, "C", last)
    comparison = {}
    for name in MEASURES:
        equal, article = ([row[name] for row in arms[weights].values()] for weights in SPEED_WEIGHTS)
        means = zip(map(named, SPEED_WEIGHTS), map(interval, (equal, article)))
        comparison[name] = dict(means) | {"difference": difference(article, equal)}
    return comparison


def summarise_study(rows, curves, shares):
    """Return the whole summary: of each part that has two pairs of runs or more.

    curves: from errors_over_epochs(); shares: from shares_of_untrained().
    """
    summary = {"level": LEVEL, "power": POWER, "test_images": rows[0]["test_images"]}
    arms = {part: by_weights(rows, part) for part in "AB"}
    ready = {part for part, weights in arms.items() if len(weights) > 1 and len(weights.get((0.9, ALONE), ())) > 1}
    for part in sorted(ready):
        summary[part] = compare(arms[part])
    if "A" in ready:
        summary["A_epochs"] = compare_epochs(curves)
    if {weights for weights, _ in shares} == set(SPEED_WEIGHTS) and len(next(iter(shares.values()))[1]) > 1:
        summary["C"] = {
            f"{named(weights)} {loss}": {"steps": steps, "share": values.mean(axis=0).tolist()}
            for (weights, loss), (steps, values) in shares.items()
        }
        summary["C_end"] = compare_ends(rows)
    shown = ("classification_weight", "autoencoder_weight", "filters", *MEASURES, "seconds")
    summary["D"] = [{name: row[name] for name in shown} for row in rows if row["part"] == "D"]
    return summary


def usual_run(rows, folder):
    """Return, beside part D, the article's weights and filters after as many epochs, from part A's first run.

    A list of one row, without the seconds, for that run has another machine; [] when there is no such run.
    """
    experiments = [row for row in rows if row["part"] == "D"]
    first = [row for row in rows if (row["part"], row["seed"], row["autoencoder_weight"]) == ("A", 0, 0.1)]
    if not experiments or not first:
        return []
    epochs = round(experiments[0]["steps"] * BATCH_SIZE / experiments[0]["images"])
    end = read_history(folder / "A" / name_of(first[0]), epochs)[-1]
    errors = round(first[0]["test_images"] * (1 - end["val_classification_accuracy"]))
    losses = {name: end[f"val_{name}"] for name in MEASURES[1:]}
    weights = {name: first[0][name] for name in ("classification_weight", "autoencoder_weight", "filters")}
    return [{**weights, "errors": errors, **losses, "seconds": None}]


def with_interval(estimate, form):
    """Write a difference and its interval: "+8 (-12 to +28)"."""
    return "{mean:{form}} ({from:{form}} to {to:{form}})".format(form=f"+z{form}", **estimate)  # z: never -0


def markdown_table(rows):
    """Return a Markdown table's lines, of rows of texts; the first is the heading."""
    heading, *others = (f"| {' | '.join(row)} |" for row in rows)
    return [heading, "|" + " --- |" * len(rows[0]), *others]


def table_of_weights(arms):
    """Return the table of a part that compares weights, from compare()."""
    loss = "classification_loss"
    rows = [("weight of the reconstruction", "errors", "difference", "cross-entropy", "difference", "squared error")]
    for weight, measures in arms.items():
        texts = []
        for name, form in (("errors", ".0f"), (loss, ".3f")):
            texts.append("{mean:{form}} ± {standard_error:{form}}".format(form=form, **measures[name]))
            paired = measures[name].get("difference")
            texts.append(with_interval(paired, form) if paired else "")
        rows.append((weight, *texts, "{mean:.4f}".format(**measures["autoencoder_loss"])))
    return markdown_table(rows)


def table_of_epochs(comparison):
    """Return the table of part A's errors over the epochs, from its summary."""
    rows = [("epoch", "both tasks", "classifier alone", "difference")]
    for epoch in (epoch for epoch in EPOCHS_SHOWN if epoch <= len(comparison["difference"])):
        means = [f"{comparison['errors'][weight][epoch - 1]:.0f}" for weight in ("0.1", "0")]
        rows.append((str(epoch), *means, with_interval(comparison["difference"][epoch - 1], ".0f")))
    for name, count in (("first", FIRST), ("last", LAST)):
        means = [f"{comparison[name][weight]['mean']:.1f}" for weight in ("0.1", "0")]
        rows.append((f"mean of the {name} {count}", *means, with_interval(comparison[f"{name}_difference"], ".1f")))
    return markdown_table(rows)


def table_of_speed(curves):
    """Return the table of part C: the losses as shares of their untrained values."""
    names = {"classification_loss": "classification", "autoencoder_loss": "reconstruction"}
    arms = [(named(weights), loss) for weights in SPEED_WEIGHTS for loss in names]
    columns = {f"{names[loss]}, {weights}": curves[f"{weights} {loss}"] for weights, loss in arms}
    steps = next(iter(columns.values()))["steps"]
    rows = [("steps", *columns)]
    for place, step in enumerate(steps):
        rows.append((str(step), *(f"{100 * column['share'][place]:.1f} %" for column in columns.values())))
    return markdown_table(rows)


def table_of_ends(comparison):
    """Return the table of what part C's weights lead to, from compare_ends()."""
    arms = [named(weights) for weights in SPEED_WEIGHTS]
    rows = [("after the epoch", *arms, "difference (95 % interval)", "would have been seen")]
    titles = {"errors": ("errors", ".0f"), "classification_loss": ("cross-entropy", ".3f")}
    for name, (title, form) in (titles | {"autoencoder_loss": ("squared error", ".3f")}).items():
        estimate = comparison[name]["difference"]
        means = [f"{comparison[name][arm]['mean']:{form}}" for arm in arms]
        rows.append((title, *means, with_interval(estimate, form), f"{estimate['visible_effect']:{form}}"))
    return markdown_table(rows)


def table_of_experiments(runs):
    """Return the table of part D."""
    rows = [("weights", "filters", "errors", "cross-entropy", "squared error", "minutes")]
    for run in runs:
        weights = f"{run['classification_weight']:g} and {run['autoencoder_weight']:g}"
        losses = f"{run['classification_loss']:.3f}", f"{run['autoencoder_loss']:.4f}"
        minutes = f"{run['seconds'] / 60:.0f}" if run["seconds"] else ""
        rows.append((weights, str(run["filters"]), str(run["errors"]), *losses, minutes))
    return markdown_table(rows)


def table_of_results(summary):
    """Return the table of accuracies and errors of both networks, beside the article's, from the whole summary."""
    count = summary["test_images"]

    def accuracy(errors):
        return f"{100 * (1 - errors / count):.2f} %"

    def row(name, errors):
        right = f"{accuracy(errors['mean'])} ({accuracy(errors['greatest'])} to {accuracy(errors['least'])})"
        return name, right, "{mean:.0f} ({least} to {greatest})".format(**errors)

    epochs = len(summary["A_epochs"]["difference"])
    last = f"epochs {max(1, epochs - LAST + 1)} to {epochs}"
    article = count * (1 - ARTICLE_ACCURACY)
    return markdown_table(
        [
            (f"after {epochs} epochs", "test accuracy, mean (range)", f"errors in {count:,}"),
            ("the article", accuracy(article), f"{article:.0f}"),
            row("both tasks", summary["A"]["0.1"]["errors"]),
            row(f"both tasks, {last}", summary["A_epochs"]["last"]["0.1"]),
            row("the classifier alone", summary["A"]["0"]["errors"]),
            row(f"the classifier alone, {last}", summary["A_epochs"]["last"]["0"]),
        ]
    )


def table_of_answers(summary):
    """Return the table that answers whether the second task helps the first, from the whole summary."""
    rows = [("", "both tasks", "classifier alone", "difference (95 % interval)", "would have been seen")]

    def add(name, both, alone, estimate, form):
        means = [f"{measure['mean']:{form}}" for measure in (both, alone)]
        rows.append((name, *means, with_interval(estimate, form), f"{estimate['visible_effect']:{form}}"))

    epochs = summary["A_epochs"]
    for name, count in (("first", FIRST), ("last", LAST)):
        title = f"errors, mean of the {name} {count} epochs"
        add(title, epochs[name]["0.1"], epochs[name]["0"], epochs[f"{name}_difference"], ".1f")
    for part, weight, measure, title, form in (
        ("A", "0.1", "errors", "errors after the last epoch", ".0f"),
        ("A", "0.1", "classification_loss", "cross-entropy after the last epoch", ".4f"),
        ("B", "0.1", "errors", "errors, few images", ".0f"),
        ("B", "10", "errors", "errors, few images, weight 10", ".0f"),
        ("B", "10", "classification_loss", "cross-entropy, few images, weight 10", ".3f"),
    ):
        both, alone = summary[part][weight][measure], summary[part]["0"][measure]
        add(title, both, alone, both["difference"], form)
    return markdown_table(rows)


def tables(summary):
    """Return Markdown tables of the parts that a summary has, by their titles."""
    makers = {"A": table_of_weights, "A_epochs": table_of_epochs, "B": table_of_weights, "C": table_of_speed}
    makers |= {"C_end": table_of_ends, "D": table_of_experiments}
    made = {part: make(summary[part]) for part, make in makers.items() if summary.get(part)}
    if {"A", "B"} <= set(made):
        made |= {"results": table_of_results(summary), "answers": table_of_answers(summary)}
    return made


def new_figure(title, xlabel, ylabel):
    """Return a figure of one panel, and its axes."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=14)
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    return figure, axes


ARMS = {0.1: ("both tasks, 0.9 and 0.1", "tab:blue"), ALONE: ("classifier alone, 0.9 and 0", "tab:orange")}


def draw_errors(curves):
    """Draw part A: the test errors over the epochs, mean and range of the seeds. Returns the figure."""
    count, epochs = next(iter(curves.values())).shape
    title = f"All images: errors with and without the second task, {count} seeds"
    figure, axes = new_figure(title, "epoch", "errors in the test images")
    for weight, curve in curves.items():
        label, color = ARMS[weight]
        x = np.arange(1, epochs + 1)
        axes.plot(x, curve.mean(axis=0), "o-", color=color, label=f"{label}: mean")
        axes.fill_between(x, curve.min(axis=0), curve.max(axis=0), color=color, alpha=0.2, label="least to greatest")
    axes.set_yscale("log")
    ticks = LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 8))
    axes.yaxis.set(major_locator=ticks, major_formatter="{x:g}", minor_formatter="")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=11)
    return figure


def draw_weights(arms):
    """Draw part B: errors and cross-entropy against the reconstruction's weight, and the paired differences.

    Returns the figure, of two rows: left the runs, right what they differ from the classifier alone.
    """
    first = next(iter(next(iter(arms.values())).values()))
    count = len(next(iter(arms.values())))
    figure = Figure(figsize=(10, 8), layout="constrained")
    title = f"{first['images']:,} training images, {count} seeds: each run, mean and 95 % interval"
    figure.suptitle(title, fontsize=14)
    labels = {"errors": f"errors in {first['test_images']:,} test images", "classification_loss": "test cross-entropy"}
    for (name, label), (left, right) in zip(labels.items(), figure.subplots(2, 2)):
        values = {weight: np.array([row[name] for row in seeds.values()]) for (_, weight), seeds in arms.items()}
        draw_means(left, values)
        draw_means(right, {weight: runs - values[ALONE] for weight, runs in values.items() if weight != ALONE})
        left.set_ylabel(label, fontsize=12)
        right.set_ylabel("difference from the classifier alone\n(below 0: the second task helps)", fontsize=12)
        right.axhline(0, color="black", linewidth=1)
    return figure


def draw_means(axes, values):
    """Draw the runs of each weight as dots, and their mean with its interval. values: arrays by weight."""
    for place, runs in enumerate(values.values()):
        axes.plot([place] * len(runs), runs, ".", color="tab:gray", alpha=0.5)
        estimate = interval(runs)
        half = estimate["to"] - estimate["mean"]
        axes.errorbar(place, estimate["mean"], half, fmt="o", color="tab:blue", capsize=6, markersize=8)
    axes.set_xticks(range(len(values)), [f"{weight:g}" for weight in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xlabel("weight of the reconstruction (classification: 0.9)", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)


def draw_speed(shares, weights=(0.5, 0.5)):
    """Draw part C: each loss as a share of its untrained value, at equal weights. Returns the figure."""
    count = len(next(iter(shares.values()))[1])
    figure, axes = new_figure(
        f"Which task learns faster? Equal weights, {count} seeds: mean and range",
        "training steps (batches of 32)",
        "test loss, untrained = 100 %",
    )
    names = {"classification_loss": "classification, cross-entropy", "autoencoder_loss": "reconstruction, sq. error"}
    for (loss, label), color in zip(names.items(), ("tab:blue", "tab:green")):
        steps, values = shares[weights, loss]
        axes.plot(steps, 100 * values.mean(axis=0), "o-", color=color, label=label)
        axes.fill_between(steps, 100 * values.min(axis=0), 100 * values.max(axis=0), color=color, alpha=0.2)
    axes.set_xscale("symlog", linthresh=25)
    axes.set_yscale("log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xlim(0, None)
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g} %", minor_formatter="")
    axes.legend(fontsize=11)
    return figure


def answer(folder):
    """Write summary.json and the charts of the parts that are there; returns the files' names and the summary."""
    rows = read_runs(folder / RUNS)
    if not rows:
        raise InputError(f"no runs in {folder / RUNS}: python experiments/second_task.py makes some")
    curves, shares = errors_over_epochs(rows, folder), shares_of_untrained(rows)
    summary = summarise_study(rows, curves, shares)
    summary["D"] += usual_run(rows, folder)
    write_json(folder / SUMMARY, summary)
    figures = {}
    if "A" in summary:
        figures["errors.png"] = draw_errors(curves)
    if "B" in summary:
        figures["weights.png"] = draw_weights(by_weights(rows, "B"))
    if "C" in summary:
        figures["speed.png"] = draw_speed(shares)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [SUMMARY, *figures], summary


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    folder = parser.parse_args(argv).output_dir
    written, summary = answer(folder)
    for lines in tables(summary).values():
        print("\n".join(lines), end="\n\n")
    print(f"Wrote {', '.join(written)} to {folder}.")


if __name__ == "__main__":
    cli.start(main)
