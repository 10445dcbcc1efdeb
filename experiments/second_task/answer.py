"""Make of the recorded runs of the second task an answer: one chart a question, and tables.

    python -m experiments.second_task.answer --output-dir outputs/reference/second_task

Two arms are compared seed by seed: Student's interval of the paired differences, at 95 %, and beside it the one that
belongs to Wilcoxon's signed ranks, in which a run far from the others counts no more than another.
"""

if __name__ == "__main__":
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy import stats

from evaluate import ARTICLE_ACCURACY
from experiments.jobs import ROOT
from experiments.second_task.runs import (
    ALL_IMAGES,
    ALONE,
    BOTH,
    CALIBRATION,
    LARGE,
    LARGER,
    OUTPUT_DIR,
    RUNS,
    read_runs,
)
from support import cli
from support.drawing import picture_style, save_figure
from support.errors import InputError
from train import BATCH_SIZE, EPOCHS

LEVEL = 0.95
INTERVAL = "difference (95 % interval)"
EPOCH = ALL_IMAGES // BATCH_SIZE
THEIRS = Path("outputs/reference/original/runs.csv")  # the author's program
PAIRS = [(BOTH, ALONE), (LARGER, ALONE), (LARGE, ALONE)]
PAIRS += [("U10", "L0"), ("U10", "L10"), ("U1", "L0"), ("L10", "L0")]  # L: labelled images only, U: and others
LOSSES = {"classification_loss": "cross-entropy", "autoencoder_loss": "squared error"}
MEASURES = {"errors": "errors", **LOSSES, **{name: name.replace("_", " ") for name in CALIBRATION}}
LATE = "A, epochs 11 to 20"
ARMS = {BOTH: "both tasks", ALONE: "the classifier alone"}
COLORS = {BOTH: "tab:green", ALONE: "tab:purple"}
WRONG, AT_RANDOM = 0.2, 0.8  # shares of wrong answers: after how many steps are there fewer, ask parts C2 and F
NAMES = {BOTH: "weight 0.1", LARGER: "weight 1", LARGE: "weight 10", ALONE: "none"}
NAMES |= {"L0": "classifier alone", "L10": "both, weight 10", "U1": "both, weight 1,\nand unlabelled images"}
NAMES |= {"U10": "both, weight 10,\nand unlabelled images"}
ANSWERS = {  # what is asked, images, labels, the second task's weight, and the comparison that answers it
    ("More accurate at the end? Errors, mean of epochs 11 to 20", "60,000", "60,000", "0.1"): (
        f"part == '{LATE}' and measure == 'errors'"
    ),
    ("The same. Cross-entropy", "60,000", "60,000", "0.1"): f"part == '{LATE}' and measure == 'classification_loss'",
    ("Faster? Steps until fewer than 20 % are wrong", "60,000", "60,000", "0.1"): "part == 'F' and measure == 'steps'",
    ("With few images? Errors", "1,000", "1,000", "0.1"): f"part == 'B' and arm == '{BOTH}' and measure == 'errors'",
    ("With images without labels? Errors", "55,000", "1,000", "10"): (
        "images == 1000 and arm == 'U10' and measure == 'errors'"
    ),
    ("The same, with 100 labels. Errors", "55,000", "100", "10"): (
        "images == 100 and filters == 64 and arm == 'U10' and measure == 'errors'"
    ),
}


def load(folder):
    """Return runs.csv as a table, with a column more: the arm of a row, "0.9 0.1", or in part E "U10".

    Part A's errors and cross-entropy are there once more, as means over epochs 11 to 20, a part of its own.
    """
    rows = read_runs(folder / RUNS)
    if rows.empty:
        raise InputError(f"no runs in {folder / RUNS}: python -m experiments.second_task.runs makes some")
    first, second = (rows[f"{output}_weight"].map("{:g}".format) for output in ("classification", "autoencoder"))
    labelled = np.where(rows["unlabelled"] > 0, "U", "L") + second
    rows["arm"] = np.where(rows["part"] == "E", labelled, first + " " + second)
    late = rows[rows["part"] == "A"].sort_values("steps").groupby(["arm", "seed"]).tail(10)
    means = late.groupby(["arm", "seed", "images", "filters"], as_index=False)[["errors", "classification_loss"]].mean()
    return pandas.concat([rows, means.assign(part=LATE, steps=1)])


def signed_ranks(differences):
    """Return the Hodges-Lehmann median of differences and its interval at LEVEL, NaN if there are too few.

    The interval holds all shifts that Wilcoxon's test does not reject (Hollander & Wolfe, chapter 3). Its ends are two
    of the sorted means of two differences; which ones, the exact distribution of the ranks' sum says.
    """
    means = np.sort(np.add.outer(differences, differences)[np.triu_indices(len(differences))] / 2)
    sums = np.ones(1)  # the probabilities of the ranks' sum, from 0
    for rank in range(1, len(differences) + 1):
        sums = np.convolve(sums, [0.5, *[0] * (rank - 1), 0.5])
    cut = np.searchsorted(sums.cumsum(), (1 - LEVEL) / 2, side="right")
    low, high = (means[cut - 1], means[-cut]) if cut else (np.nan, np.nan)
    return {"median": np.median(means), "median_from": low, "median_to": high}


def compare_pairs(values, baseline):
    """Return what two arms, arrays over the same seeds, at least 2, say of their difference, as a dict."""
    differences, test = np.subtract(values, baseline), stats.ttest_rel(values, baseline)
    low, high = test.confidence_interval(LEVEL)
    means = {"pairs": len(differences), "mean": np.mean(values), "baseline_mean": np.mean(baseline)}
    means |= {"difference": differences.mean(), "from": low, "to": high, "p": test.pvalue}
    return {**means, **signed_ranks(differences)}


def holm(p):
    """Return p-values after Holm's correction over all of them."""
    order = np.argsort(p)
    corrected = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected[np.argsort(order)]


def comparisons(rows):
    """Return all comparisons, a table: a row for each part, size, measure and pair of arms, over the seeds of both."""
    found = []
    rows = rows[(rows["steps"] > 0) & (rows["part"] != "F")]  # of which compare_steps() says what was planned
    for key, group in rows.groupby(["part", "filters", "images", "steps"]):
        for measure in MEASURES:
            arms = group.pivot(index="seed", columns="arm", values=measure)
            for arm, baseline in PAIRS:
                pairs = arms.reindex(columns=[arm, baseline]).dropna()
                if len(pairs) > 1:
                    names = dict(zip(("part", "filters", "images", "steps"), key))
                    names |= {"measure": measure, "arm": arm, "baseline": baseline}
                    found.append({**names, **compare_pairs(pairs[arm].array, pairs[baseline].array)})
    found = pandas.DataFrame(found)
    primary = found.query("part == 'E' and filters == 64 and measure == 'errors' and arm == 'U10'").index
    found.loc[primary, "p_holm"] = holm(found.loc[primary, "p"].to_numpy())  # over the four that the plan names
    return found


def steps_until(run):
    """Return after how many steps a run has fewer wrong answers than WRONG, from its rows.

    Between two measurements both are taken for straight lines on logarithmic axes. The last measurement's steps where
    it never has, NaN where it had before the first.
    """
    run = run.sort_values("steps")
    steps, wrong = run["steps"].to_numpy(), (run["errors"] / run["test_images"]).to_numpy()
    if not (wrong < WRONG).any():
        return steps[-1]
    after = int(np.argmax(wrong < WRONG))
    if not after:
        return np.nan
    between = slice(after - 1, after + 1)
    return np.exp(np.interp(-np.log(WRONG), -np.log(wrong[between]), np.log(steps[between])))


def compare_steps(rows):
    """Return what the steps_until() of parts C2 and F say, a table: geometric means, and the ratio with its interval.

    A row for each part in which two pairs, and not all of them alike, are there.
    """
    found, names = [], ["mean", "baseline_mean", "difference", "from", "to"]
    for part, of_part in rows[rows["part"].isin(["C2", "F"])].groupby("part"):
        steps = of_part.groupby(["arm", "seed"])[["steps", "errors", "test_images"]].apply(steps_until)
        pairs = np.log(steps.unstack("arm").reindex(columns=[BOTH, ALONE])).dropna()
        if len(pairs) > 1 and (pairs[BOTH] != pairs[ALONE]).any():
            compared = compare_pairs(pairs[BOTH].array, pairs[ALONE].array)
            found.append({"part": part, "measure": "steps", **{name: np.exp(compared[name]) for name in names}})
    return pandas.DataFrame(found, columns=["part", "measure", *names])


def signed(number, digits):
    """Write a difference: "+8", and "-0.2" where "-0" would hide it."""
    while number and not round(number, digits):
        digits += 1
    return f"{number:+.{digits}f}"


def texts_of(found):
    """Return the texts of a comparison: two means, the difference and its interval, the median and its interval."""
    digits = 4 if found["mean"] < 0.1 else 3 if found["mean"] < 10 else 1 if found["part"] == LATE else 0
    texts = [f"{found[name]:.{digits}f}" for name in ("mean", "baseline_mean")]
    for middle, low, high in (("difference", "from", "to"), ("median", "median_from", "median_to")):
        ends = "" if np.isnan(found[low]) else f" ({signed(found[low], digits)} to {signed(found[high], digits)})"
        texts.append(signed(found[middle], digits) + ends)
    return texts


def texts_of_ratio(found):
    """Return the texts of a comparison of compare_steps(): two means, and the ratio with its interval."""
    return [
        f"{found['mean']:.0f}",
        f"{found['baseline_mean']:.0f}",
        "{difference:.2f} times ({from:.2f} to {to:.2f})".format(**found),
    ]


def markdown_table(*rows):
    """Return a Markdown table, of rows of texts; the first is the heading."""
    heading, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([heading, "|" + " --- |" * len(rows[0]), *others])


def table_of(found):
    """Return the table of a part's comparisons: of the errors in full, of the cross-entropies the differences."""
    found = found.rename(columns={"images": "labels"})  # only part E has them in two numbers
    size = [name for name in ("filters", "labels", "steps") if found[name].nunique() > 1]
    losses = [loss for loss in ("classification_loss", "fitted_loss") if (found["measure"] == loss).any()]
    rows = [["", "errors", "less these", INTERVAL, "median (signed ranks)", "Holm's p", *map(MEASURES.get, losses)]]
    for (*sizes, baseline, arm), pair in found.groupby([*size, "baseline", "arm"]):
        by_measure = {one["measure"]: one for one in pair.to_dict("records")}
        p = by_measure["errors"]["p_holm"]
        names = [*(f"{number:,} {name}" for number, name in zip(sizes, size)), f"{arm} and {baseline}"]
        texts = [", ".join(names), *texts_of(by_measure["errors"]), "" if np.isnan(p) else f"{p:.4f}"]
        rows.append([*texts, *(texts_of(by_measure[loss])[2] for loss in losses)])
    shown = [number for number, column in enumerate(zip(*rows)) if any(column[1:])]  # no empty column
    return markdown_table(*([row[number] for number in shown] for row in rows))


def tables(rows, found):
    """Return the Markdown tables of the pages by name, from load() and comparisons()."""
    answers = [("", "images", "labels", "weight", "both tasks", "classifier alone", INTERVAL)]
    of_steps = compare_steps(rows)
    compared = pandas.concat([found, of_steps]) if len(of_steps) else found
    for asked, query in ANSWERS.items():
        for one in compared.query(query).head(1).to_dict("records"):
            answers.append((*asked, *(texts_of_ratio if one["measure"] == "steps" else texts_of)(one)[:3]))
    made = {"answers": markdown_table(*answers), "results": table_of_results(rows[rows["part"] == "A"])}
    made |= {"few labels": table_of_few_labels(found), "probabilities": table_of_probabilities(rows)}
    made["F"] = table_of_first_steps(rows, of_steps)
    for part in ("B", "C2", "E"):
        made[part] = table_of(found[found["part"] == part])
    means = rows[rows["part"] == "E"].groupby(["filters", "images", "arm"])[[*CALIBRATION]].mean()
    texts = [(*map(str, names), *(f"{mean:.3f}" for mean in of_arm)) for names, *of_arm in means.itertuples()]
    made["calibration"] = markdown_table(("filters", "labels", "arm", *map(MEASURES.get, CALIBRATION)), *texts)
    return {name: table for name, table in made.items() if table.count("\n") > 1}  # those with a row


def named(arm):
    """Return the name of an arm as a table has it, on one line."""
    return NAMES[arm].replace("\n", " ")


def table_of_first_steps(rows, compared):
    """Return part F's table: the steps until fewer than 20 % are wrong, and how many runs are late, or never there."""
    rows, order = rows[rows["part"] == "F"], [BOTH, ALONE]
    wrong = (rows["errors"] / rows["test_images"]).groupby([rows["arm"], rows["seed"], rows["steps"]]).first().unstack()
    table = [("", *map(ARMS.get, order), "ratio (95 % interval)")]
    for one in compared[compared["part"] == "F"].to_dict("records"):
        table.append(("steps until fewer than 20 % are wrong", *texts_of_ratio(one)))
        late = {
            "more than 80 % wrong after 100 steps": wrong[100] > AT_RANDOM,
            "never there": wrong.min(axis=1) >= WRONG,
        }
        for title, runs in late.items():
            table.append((title, *(f"{runs[arm].sum()} of {len(runs[arm])}" for arm in order), ""))
    return markdown_table(*table)


def table_of_few_labels(found):
    """Return the table of the four planned comparisons of part E, and of L10 less L0 beside them."""
    found = found.query("part == 'E' and filters == 64 and measure == 'errors'")
    table = [("errors of", "less those of", "labels", INTERVAL, "Holm's p")]
    planned = found.query("arm == 'U10'")
    for one in pandas.concat([planned, found.query("arm == 'L10' and images == 100")]).to_dict("records"):
        p = "not planned" if np.isnan(one["p_holm"]) else f"{one['p_holm']:.4f}"
        table.append((named(one["arm"]), named(one["baseline"]), f"{one['images']:,}", texts_of(one)[2], p))
    return markdown_table(*table)


def table_of_probabilities(rows):
    """Return part E's means with 64 filters: the classifier alone, and both tasks with a weight of 10."""
    measures = ("true_probability", "classification_loss", "temperature", "fitted_loss")
    means = rows.query("part == 'E' and filters == 64 and arm in ('L0', 'L10')").groupby(["images", "arm"])
    table = [("labels", "", *map(MEASURES.get, measures))]
    for (images, arm), *values in means[[*measures]].mean().itertuples():
        table.append((f"{images:,}", named(arm), *(f"{value:.3f}" for value in values)))
    return markdown_table(*table)


def table_of_results(rows):
    """Return the table of part A's accuracies and errors, beside the article's and those of the author's program."""

    def row(name, mean, least, greatest):
        right = [f"{1 - errors / 10_000:.2%}".replace("%", " %") for errors in (mean, greatest, least)]
        return name, "{} ({} to {})".format(*right), f"{mean:.0f} ({least:.0f} to {greatest:.0f})"

    theirs = pandas.read_csv(ROOT / THEIRS).query("stage == 'whole'")
    whole = theirs.groupby("seed").filter(lambda run: len(run) == EPOCHS)
    groups = [("the author's program", f"run again (Keras 2.1.2, {whole['seed'].nunique()} runs)", whole)]
    groups += [(name, "5 seeds", rows[rows["arm"] == arm]) for arm, name in ARMS.items()]
    table = [("after 20 epochs", "test accuracy, mean (range)", "errors in 10,000")]
    table.append(("the article", f"{100 * ARTICLE_ACCURACY:.2f} %", f"{10_000 * (1 - ARTICLE_ACCURACY):.0f}"))
    for name, which, runs in groups:
        by_seed = runs.sort_values("steps").groupby("seed")["errors"]
        for title, epochs in ((f"{name}, {which}", 1), (f"{name}, epochs 11 to 20", 10)):
            errors = by_seed.tail(epochs)
            table.append(row(title, errors.mean(), errors.min(), errors.max()))
    return markdown_table(*table)


def new_figure(title, size, rows, columns):
    """Return a figure with a title, and its panels, an array (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=14)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
    return figure, panels


def make_logarithmic(axes, ticks=(1, 1.5, 2, 3, 4, 5, 6, 8), text="{x:g}"):
    """Make a panel's y axis logarithmic, with numbers, written as text says, at ticks and at ten times as much."""
    axes.set_yscale("log")
    axes.yaxis.set(major_locator=LogLocator(subs=ticks), major_formatter=text, minor_formatter="")


def draw_differences(axes, places, found):
    """Draw comparisons: mean differences with their intervals, and the line of none."""
    axes.axhline(0, color="black", linewidth=1)
    half = found["to"] - found["difference"]
    axes.errorbar(places, found["difference"], half, fmt="o", color="black", capsize=5)
    axes.set_ylabel("difference, mean and 95 % interval", fontsize=12)
    axes.text(0.5, 0.02, "below 0: helps", transform=axes.transAxes, ha="center", fontsize=11, fontstyle="italic")


def draw_errors(rows, found):
    """Draw part A's errors over the epochs: left both arms, right the paired difference. Returns the figure."""
    figure, ((left, right),) = new_figure("All images, 20 epochs, 5 seeds", (12, 5), 1, 2)
    for arm, name in ARMS.items():
        errors = rows.query(f"part == 'A' and arm == '{arm}'").groupby("steps")["errors"]
        epochs = errors.mean().index / EPOCH
        left.plot(epochs, errors.mean(), "o-", color=COLORS[arm], label=name)
        left.fill_between(epochs, errors.min(), errors.max(), color=COLORS[arm], alpha=0.2)
    left.set(ylabel="errors in the test images: mean, least to greatest", xlabel="epoch")
    make_logarithmic(left)
    left.legend(fontsize=11)
    found = found.query("part == 'A' and measure == 'errors'")
    draw_differences(right, found["steps"] / EPOCH, found)
    right.set(xlabel="epoch", title="errors with both tasks, less those of the classifier alone")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_weights(rows, found):
    """Draw part B: above every run and the mean with its interval, below the paired differences. Returns the figure."""
    measures, rows = ("errors", "classification_loss"), rows[rows["part"] == "B"]
    order = [arm for arm in (ALONE, BOTH, LARGER, LARGE) if arm in {*rows["arm"]}]
    figure, axes = new_figure("1,000 images: does the weight matter? 16 seeds", (10, 8), 2, 2)
    for measure, (upper, lower) in zip(measures, axes.T):
        arms = rows.pivot(index="seed", columns="arm", values=measure)[order]
        half = stats.t.ppf((1 + LEVEL) / 2, len(arms) - 1) * arms.sem()
        upper.margins(x=0.25)  # room for a text at the right
        upper.plot(range(len(order)), arms.T, ".", color="tab:gray", alpha=0.6)
        upper.errorbar(range(len(order)), arms.mean(), half, fmt="o", color="black", capsize=5)
        (seed, arm), worst = arms.stack().idxmax(), arms.max(axis=None)
        upper.annotate(f" seed {seed}", (arms.columns.get_loc(arm), worst), va="center")
        upper.set(ylabel=MEASURES[measure])
        upper.set_xticks(range(len(order)), map(NAMES.get, order))
        pairs = found.query(f"part == 'B' and measure == '{measure}'")
        draw_differences(lower, range(len(pairs)), pairs)
        lower.set_xticks(range(len(pairs)), pairs["arm"].map(NAMES) + "\nminus none")
    return figure


def draw_labels(rows, found):
    """Draw part E's differences in the errors, with 64 filters: panels for 100 and 1,000 labels. Returns it."""
    figure, axes = new_figure("Few labels: errors of the first, less those of the second. 16 seeds", (14, 6), 1, 2)
    rows = rows.query("part == 'E' and filters == 64")
    for images, panel in zip(sorted({*rows["images"]}), axes.flat):
        part = rows.query(f"images == {images}")
        arms = part.pivot(index="seed", columns="arm", values="errors")
        pairs = found.query(f"part == 'E' and filters == 64 and images == {images} and measure == 'errors'")
        pairs = pairs.sort_values(["baseline", "arm"])  # as in the table
        for place, (arm, baseline) in enumerate(zip(pairs["arm"], pairs["baseline"])):
            differences = arms[arm] - arms[baseline]
            panel.plot([place + 0.15] * len(differences), differences, ".", color="tab:gray", alpha=0.6)
        draw_differences(panel, range(len(pairs)), pairs)
        names = pairs["arm"].map(NAMES) + "\n\nless\n" + pairs["baseline"].map(NAMES)
        panel.set_xticks(range(len(pairs)), names, fontsize=9)
        panel.set(title=f"{images:,} labels")
    return figure


def draw_first_steps(rows, found):
    """Draw parts C2 and F: the share of wrong answers over the steps, a thin line for each run. Returns the figure."""
    parts = [part for part in ("C2", "F") if part in {*rows["part"]}]
    figure, (panels,) = new_figure("The first steps, all images", (7 * len(parts), 5), 1, len(parts))
    for part, axes in zip(parts, panels):
        of_part = rows[rows["part"] == part]
        of_part = of_part.assign(wrong=100 * of_part["errors"] / of_part["test_images"])
        for arm in (arm for arm in ARMS if arm in {*of_part["arm"]}):
            runs = of_part[of_part["arm"] == arm].pivot(index="steps", columns="seed", values="wrong")
            axes.plot(runs.index, runs, color=COLORS[arm], linewidth=0.6, alpha=0.5)
            mean = np.exp(np.log(runs).mean(axis=1))
            axes.plot(runs.index, mean, "o-", markersize=4, color=COLORS[arm], label=ARMS[arm])
        axes.axhline(100 * WRONG, color="black", linestyle=":")
        axes.set_xscale("log")
        least, most = of_part["steps"].agg(["min", "max"])
        ticks = [step for step in (1, 10, 25, 50, 100, 200, 400, 800) if least <= step <= most]
        axes.set_xticks(ticks, [*map(str, ticks)])
        axes.minorticks_off()
        axes.set(title=f"{of_part['seed'].nunique()} seeds", xlabel="training steps (logarithmic)")
        axes.set_ylabel("wrong answers (logarithmic)")
        make_logarithmic(axes, (1, 2, 5), "{x:g} %")
        axes.legend(fontsize=11, title="thick: geometric mean of the seeds")
    return figure


def draw(rows, found):
    """Return the charts of the parts that are there, figures by their files' names."""
    charts = {
        "A": ("errors.png", draw_errors),
        "B": ("weights.png", draw_weights),
        "C2": ("first_steps.png", draw_first_steps),
        "E": ("labels.png", draw_labels),
    }
    return {name: draw_part(rows, found) for part, (name, draw_part) in charts.items() if part in {*rows["part"]}}


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    folder = parser.parse_args(argv).output_dir
    rows = load(folder)
    found = comparisons(rows)
    with picture_style():
        for name, figure in draw(rows, found).items():
            save_figure(figure, folder / name)
    for name, table in tables(rows, found).items():
        print(f"{name}:\n{table}\n")
    print(f"Wrote the charts to {folder}.")


if __name__ == "__main__":
    cli.start(main)
