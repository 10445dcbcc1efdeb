"""The author's program beside ours: the tables and the chart of docs/faithful.md, from the rows of both.

    python -m experiments.authors_program.comparison

original.py makes the author's runs, ours.py ours.
"""

if __name__ == "__main__":
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

from itertools import combinations

import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy import stats

from evaluate import ARTICLE_ACCURACY
from experiments.authors_program.ours import OUTPUT_DIR, read
from experiments.authors_program.shared import BLIND, LEFT
from experiments.jobs import ROOT
from experiments.second_task.runs import ALL_IMAGES
from support import cli
from support.drawing import picture_style, save_figure
from support.run_folder import read_history
from train import BATCH_SIZE, EPOCHS

CHANCE = 2  # a cross-entropy above it is hardly better than guessing among ten classes, which costs log 10 = 2.3
EPOCH = ALL_IMAGES // BATCH_SIZE
# Planned before the first run of small: within these ratios both programs count as the same.
MARGINS = {"errors": 1.15, "classification_loss": 1.2, "autoencoder_loss": 1.15}
NAMES = {"errors": "errors", "classification_loss": "cross-entropy", "autoencoder_loss": "squared error"}
NAMES["uncut_loss"] = NAMES["classification_loss"]
WHOLE = ["errors", "uncut_loss", "autoencoder_loss"]  # what is compared of whole
SEEDS = ["outputs/reference", "outputs/reference/seeds/1", "outputs/reference/seeds/2"]
SEEDS += [f"outputs/reference/second_task/A/A-0.9-0.1-seed{seed}" for seed in (3, 4)]
TABLES = {  # of docs/faithful.md: a heading, and what a row says
    "race": (
        "| | threads | runs | different ends | left the path | came back | at chance | dead | end of the living |",
        "| {program} | {threads} | {runs} | {ends} | {left} | {back} | {chance} | {dead} | {living:.2f} |",
    ),
    "small": (
        "| runs of each | | ours | the author's | ratio (90 % interval) | margin | p |",
        "| {runs} | {name} | {ours:#.4g} | {theirs:#.4g} | {ratio:.3f} ({low:.3f} to {high:.3f}) | {margin} "
        "| {p:.5f} |",
    ),
    "whole": (
        "| | seed | errors after 20 epochs | mean of epochs 11 to 20 | cross-entropy | squared error |",
        "| {program} | {seed} | {errors:.0f} | {late_errors:.1f} | {uncut_loss:.4f} | {autoencoder_loss:.5f} |",
    ),
    "whole, means": (
        "| mean of the runs | ours | the author's | ratio (95 % interval) |",
        "| {name} | {ours:.4g} | {theirs:.4g} | {ratio:.3f} ({low:.3f} to {high:.3f}) |",
    ),
    "first_steps": (
        "| | runs | had begun after 400 steps | median step (quartiles) | p |",
        "| {program} | {runs} | {begun} | {median:.0f} ({low:.0f} to {high:.0f}) | {p:.3f} |",
    ),
    "same_numbers": (
        "| first | second | pairs | begun, first | second | of both, second later | later by, median | apart, median "
        "| most | rank correlation | p |",
        "| {first} | {second} | {runs} | {begun_first} | {begun_second} | {later} | {by:.0f} | {apart:.0f} "
        "| {most:.0f} | {correlation:.2f} | {p:.5f} |",
    ),
}


def welch(ours, theirs, shift=0.0, alternative="two-sided"):
    """Return SciPy's Welch test of the logarithms: whether theirs, shifted, are other than ours."""
    return stats.ttest_ind(np.log(theirs) + shift, np.log(ours), equal_var=False, alternative=alternative)


def ratio_of_means(ours, theirs, level):
    """Return a dict: both geometric means, the ratio theirs to ours, and the ends of its interval at a level."""
    first, second = np.log(ours).mean(), np.log(theirs).mean()
    ends = welch(ours, theirs).confidence_interval(level)
    found = {"ours": first, "theirs": second, "ratio": second - first, "low": ends.low, "high": ends.high}
    return {name: float(np.exp(value)) for name, value in found.items()}


def equivalence(ours, theirs, margin):
    """Test by two one-sided Welch tests whether the ratio of two geometric means lies between 1 / margin and margin.

    Returns a dict: ratio_of_means() at 90 %, the margin, and the greater p of the two tests.
    """
    limit = np.log(margin)
    tests = welch(ours, theirs, limit, "greater"), welch(ours, theirs, -limit, "less")
    return {**ratio_of_means(ours, theirs, 0.9), "margin": margin, "p": float(max(test.pvalue for test in tests))}


def deaths(theirs, ours):
    """Return race as rows: of each group of runs, how many ended alike, left the path, came back, are dead.

    "chance" counts all that ended at chance, also those that never left the path. "living" is the median of the
    cross-entropies at the end of those that are not dead.
    """
    theirs, ours = (rows[rows["stage"] == "race"] for rows in (theirs, ours))
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
        left, lost, dead = rows["above_5"] > 0, rows["at_the_end"] > CHANCE, rows["at_the_end"] > LEFT
        row = {"program": name, "threads": threads, "runs": len(rows), "ends": rows["losses_sha256"].nunique()}
        counts = {"left": left, "back": left & ~lost, "chance": lost & ~dead, "dead": dead}
        row |= {name: int(which.sum()) for name, which in counts.items()}
        found.append({**row, "living": float(rows["at_the_end"][~dead].median())})
    return found


def equivalences(theirs, ours):
    """Return small as rows: equivalence() of each measure, over all seeds and, as planned, over all but seed 0.

    The last row was not planned: the squared error of the seeds whose drawings had begun in both programs.
    """
    a, b = (rows[rows["stage"] == "small"].set_index("seed") for rows in (ours, theirs))
    both = a.index.intersection(b.index)
    drew = [seed for seed in both if max(rows.loc[seed, "autoencoder_loss"] for rows in (a, b)) < BLIND]
    compared = [(both[both >= least], measure, NAMES[measure]) for least in (0, 1) for measure in MARGINS]
    compared.append((drew, "autoencoder_loss", "squared error, where both drew"))
    found = []
    for seeds, measure, name in compared if len(both) > 1 else ():
        values = (rows.loc[seeds, measure].to_numpy(float) for rows in (a, b))
        found.append({"runs": len(seeds), "name": name, **equivalence(*values, MARGINS[measure])})
    return found


def beginnings(theirs, ours):
    """Return first_steps as rows: of each program, how many runs began to draw, and after how many steps.

    The median and the quartiles are steps of a run. p is Mann and Whitney's; a run that has not begun is the last one.
    """
    a, b = (rows[rows["stage"] == "first_steps"].set_index("seed")["drew_in"].fillna(np.inf) for rows in (ours, theirs))
    both, found = a.index.intersection(b.index), []
    for program, steps in (("ours", a[both]), ("the author's", b[both])) if len(both) else ():
        low, median, high = (float(at) for at in np.quantile(steps, [0.25, 0.5, 0.75], method="inverted_cdf"))
        row = {"program": program, "runs": len(both), "begun": int(np.isfinite(steps).sum())}
        p = float(stats.mannwhitneyu(a[both], b[both]).pvalue)
        found.append({**row, "median": median, "low": low, "high": high, "p": p})
    return found


def same_randomness(theirs, ours):
    """Return same_numbers as rows: after how many steps two programs draw that were dealt the same, two and two.

    Runs that began in both are compared: how far apart they are, Spearman's correlation, and Wilcoxon's p of the pairs.
    """
    ours = ours[ours["stage"] == "same_numbers"]
    programs = {
        "the author's": theirs[theirs["stage"] == "first_steps"], "ours": ours[ours["cut"] == 0],
        "ours, cut at 1e-7": ours[ours["cut"] == 1],
    }  # fmt: skip
    steps = {name: rows.set_index("seed")["drew_in"].astype(float) for name, rows in programs.items()}
    found = []
    for names in combinations(steps, 2):
        pairs = pandas.concat([steps[name] for name in names], axis=1, join="inner", keys=["first", "second"])
        begun = pairs.dropna()
        if len(begun) > 1:
            later = begun["second"] - begun["first"]
            row = {**dict(zip(("first", "second"), names)), "runs": len(pairs)}
            row |= {f"begun_{name}": int(count) for name, count in pairs.count().items()}
            row |= {"later": int((later > 0).sum()), "by": float(later.median())}
            row |= {"apart": float(later.abs().median()), "most": float(later.abs().max())}
            row["correlation"] = float(stats.spearmanr(begun["first"], begun["second"]).statistic)
            found.append({**row, "p": float(stats.wilcoxon(later).pvalue)})
    return found


def our_runs():
    """Return our five seeds as rows like those of whole, one an epoch: seed, steps, errors and two losses."""
    runs = []
    for seed, folder in enumerate(SEEDS):
        epochs = pandas.DataFrame(read_history(ROOT / folder))
        found = {"seed": seed, "steps": epochs["epoch"] * EPOCH, "uncut_loss": epochs["val_classification_loss"]}
        found["errors"] = (10_000 * (1 - epochs["val_classification_accuracy"])).round()
        runs.append(pandas.DataFrame({**found, "autoencoder_loss": epochs["val_autoencoder_loss"]}))
    return pandas.concat(runs)


def last_epochs(theirs, ours):
    """Return whole as rows: of each whole run the errors and losses after the last epoch, and means of 11 to 20."""
    found = []
    for program, rows in (("the author's", theirs[theirs["stage"] == "whole"]), ("ours", ours)):
        for seed, run in rows.groupby("seed"):
            if len(run) == EPOCHS:
                late = run.sort_values("steps")[WHOLE].tail(EPOCHS // 2)
                last = {name: float(late[name].iloc[-1]) for name in WHOLE}
                means = {f"late_{name}": float(late[name].mean()) for name in WHOLE}
                found.append({"program": program, "seed": int(seed), **last, **means})
    return found


def mean_ratios(found):
    """Return ratio_of_means() at 95 % of each measure of last_epochs()' rows; nothing of fewer than two runs."""
    groups = [pandas.DataFrame([row for row in found if row["program"] == name]) for name in ("ours", "the author's")]
    whens = {"": "after 20 epochs", "late_": "mean of epochs 11 to 20"} if min(map(len, groups)) > 1 else {}
    return [
        {"name": f"{NAMES[measure]}, {title}", **ratio_of_means(*(runs[when + measure] for runs in groups), 0.95)}
        for measure in WHOLE
        for when, title in whens.items()
    ]


def summarise(theirs, ours):
    """Return what the rows of both programs say, a dict: for each stage that has rows, a list of dicts."""
    found = {"race": deaths(theirs, ours), "small": equivalences(theirs, ours)}
    found["whole"] = last_epochs(theirs, our_runs()) if (theirs["steps"] == EPOCHS * EPOCH).any() else []
    found["whole, means"] = mean_ratios(found["whole"])
    found |= {"first_steps": beginnings(theirs, ours), "same_numbers": same_randomness(theirs, ours)}
    return {stage: rows for stage, rows in found.items() if rows}


def tables(summary):
    """Return the Markdown tables of a summary, by stage."""
    made = {}
    for stage, found in summary.items():
        heading, row = TABLES[stage]
        rule = "|" + (heading.count("|") - 1) * " --- |"
        made[stage] = "\n".join([heading, rule, *(row.format(**one) for one in found)])
    return made


def draw_errors(theirs):
    """Draw the errors over 20 epochs: our five seeds as a band, the author's program as lines, the article's 67.

    theirs are rows of whole; of a run that is not whole, the line ends early.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ours = our_runs().groupby("steps")["errors"].agg(["min", "max"])
    epochs = ours.index // EPOCH
    axes.fill_between(epochs, ours["min"], ours["max"], color="tab:blue", alpha=0.3, label="ours, five seeds")
    for version, color in (("1.4.1", "tab:orange"), ("1.15.2", "tab:red")):
        label = f"the author's program, TensorFlow {version}"
        for _, run in theirs[theirs["versions"].str.contains(f"tensorflow {version},")].groupby("seed"):
            axes.plot(run["steps"] / EPOCH, run["errors"], ".-", color=color, linewidth=1.2, label=label)
            label = None
    axes.axhline(10_000 * (1 - ARTICLE_ACCURACY), color="black", linestyle="--", linewidth=1, label="the article, 67")
    axes.set(xlabel="epoch", ylabel="errors in 10,000 test images", yscale="log", xticks=epochs)
    axes.set_yticks([50, 70, 100, 150, 200, 300], ["50", "70", "100", "150", "200", "300"], minor=False)
    axes.minorticks_off()
    axes.legend()
    return figure


def main(argv=None):
    parser = cli.ArgumentParser(__doc__)
    parser.set_defaults(output_dir=OUTPUT_DIR)
    folder = parser.parse_args(argv).output_dir
    theirs, ours = (read(folder / name) for name in ("runs.csv", "ours.csv"))
    for stage, made in tables(summarise(theirs, ours)).items():
        print(f"{stage}:\n{made}\n")
    with picture_style():
        save_figure(draw_errors(theirs[theirs["stage"] == "whole"]), folder / "errors.png")
    print(f"Wrote errors.png to {folder}.")


if __name__ == "__main__":
    cli.start(main)
