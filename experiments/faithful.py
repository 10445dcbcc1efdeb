"""The author's program beside ours: makes our runs of all stages but 3, the tables and the chart of docs/faithful.md.

    python experiments/faithful.py --make 0          20 seeds of 150 steps, with and without the original's cut at 1e-7
    python experiments/faithful.py --make 2          part B's runs with both tasks, 16 seeds of 1,250 steps
    python experiments/faithful.py --make 4          the first 400 steps of these
    python experiments/faithful.py --make 5          the same, with the random numbers that the author's program draws
    python experiments/faithful.py                   the tables, summary.json, errors.png

experiments/original.py makes the author's runs. What is recorded is not made again. Needs experiments/requirements.txt.
"""

import hashlib
import sys
import time
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

if __name__ == "__main__":
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

import keras
import numpy as np
import original_random
import pandas
from matplotlib.figure import Figure
from one_run import choose_images
from scipy import stats
from second_task import ALL_IMAGES, BOTH, new_run

from data import epoch_order, load_data, make_targets, preprocess
from evaluate import ARTICLE_ACCURACY, compute_metrics
from support import cli
from support.backend import keras_settings, reseed, run_network
from support.files import locked, write_json
from support.fonts import picture_style
from support.run_folder import environment, processor, read_history
from train import BATCH_SIZE, EPOCHS, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, new_model
from visualize import save_figure

OUTPUT_DIR = Path("outputs/reference/original")
CUT = 1e-7  # Keras 2.1.2 takes no logarithm of a smaller probability
BLIND, LEFT = 0.0673, 5  # as in original.py
CHANCE = 2  # a cross-entropy above it is hardly better than guessing among ten classes, which costs log 10 = 2.3
STAGE_0_SEEDS, STAGE_2_SEEDS = range(200, 220), range(16)
EPOCH = ALL_IMAGES // BATCH_SIZE
# Planned before the first run of stage 2: within these ratios both programs count as the same.
MARGINS = {"errors": 1.15, "classification_loss": 1.2, "autoencoder_loss": 1.15}
NAMES = {"errors": "errors", "classification_loss": "cross-entropy", "autoencoder_loss": "squared error"}
NAMES["uncut_loss"] = NAMES["classification_loss"]
WHOLE = ["errors", "uncut_loss", "autoencoder_loss"]  # what is compared of stage 3
SEEDS = ["outputs/reference", "outputs/reference/seeds/1", "outputs/reference/seeds/2"]
SEEDS += [f"outputs/reference/second_task/A/A-0.9-0.1-seed{seed}" for seed in (3, 4)]
TABLES = {  # of docs/faithful.md: a heading, and what a row says
    "stage 0": (
        "| | threads | runs | different ends | left the path | came back | at chance | dead | end of the living |",
        "| {program} | {threads} | {runs} | {ends} | {left} | {back} | {chance} | {dead} | {living:.2f} |",
    ),
    "stage 2": (
        "| runs of each | | ours | the author's | ratio (90 % interval) | margin | p |",
        "| {runs} | {name} | {ours:#.4g} | {theirs:#.4g} | {ratio:.3f} ({low:.3f} to {high:.3f}) | {margin} "
        "| {p:.5f} |",
    ),
    "stage 3": (
        "| | seed | errors after 20 epochs | mean of epochs 11 to 20 | cross-entropy | squared error |",
        "| {program} | {seed} | {errors:.0f} | {late_errors:.1f} | {uncut_loss:.4f} | {autoencoder_loss:.5f} |",
    ),
    "stage 3, means": (
        "| mean of the runs | ours | the author's | ratio (95 % interval) |",
        "| {name} | {ours:.4g} | {theirs:.4g} | {ratio:.3f} ({low:.3f} to {high:.3f}) |",
    ),
    "stage 4": (
        "| | runs | had begun after 400 steps | median step (quartiles) | p |",
        "| {program} | {runs} | {begun} | {median:.0f} ({low:.0f} to {high:.0f}) | {p:.3f} |",
    ),
    "stage 5": (
        "| first | second | pairs | begun, first | second | of both, second later | later by, median | apart, median "
        "| most | rank correlation | p |",
        "| {first} | {second} | {runs} | {begun_first} | {begun_second} | {later} | {by:.0f} | {apart:.0f} "
        "| {most:.0f} | {correlation:.2f} | {p:.5f} |",
    ),
}


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


def drew_in(drawings):
    """Return after how many steps the mean of the last ten squared errors is below BLIND, or "" if it never is."""
    better = np.convolve(drawings, np.full(10, 0.1), "valid") < BLIND
    return int(better.argmax()) + 10 if better.any() else ""


def make(stage, seed, cut):
    """Do one of our runs; returns its row."""
    (images, labels), (test_images, test_labels), class_names = load_data()
    network, started, next_masks = new_network(seed, cut), time.perf_counter(), None
    if stage == 0:
        indices = epoch_order(150 * BATCH_SIZE, seed, 0).reshape(150, -1)
    elif stage == 5:
        next_masks, random = original_random.take(network, seed)
        its_images = np.tile(np.load(ROOT / OUTPUT_DIR / "images.npy")[seed], 40)
        indices = original_random.shuffled(random, its_images).reshape(1250, -1)
    else:
        indices = choose_images(new_run("B", BOTH, seed, 1000, 1250), labels)[0]
    reseed(network, seed, 0)
    losses, drawings = [], []
    for chosen in indices[:400] if stage in (4, 5) else indices:
        if next_masks:
            next_masks()
        x = preprocess(images[chosen])
        targets = make_targets(x, labels[chosen], len(class_names))
        with keras_settings():
            network.reset_metrics()
            logs = network.train_on_batch(x, tuple(targets[name] for name in network.output_names), return_dict=True)
        losses.append(float(logs["classification_loss"]))
        drawings.append(float(logs["autoencoder_loss"]))
    above = np.greater(losses, LEFT)
    outputs = run_network(network, test_images)
    found = compute_metrics(test_images, test_labels, outputs)
    of_truth = outputs["classification"][np.arange(len(test_labels)), test_labels].astype(np.float64)
    on = environment()
    return {
        "stage": stage, "cut": int(cut), "seed": seed, "steps": len(losses), "errors": found["errors"],
        "classification_loss": -np.log(of_truth.clip(CUT, 1 - CUT)).mean(), "uncut_loss": found["classification_loss"],
        "autoencoder_loss": found["autoencoder_loss"], "left_in": int(above.argmax()) + 1 if above.any() else "",
        "above_5": int(above.sum()), "at_the_end": np.mean(losses[-10:]),
        "drew_in": drew_in(drawings),
        "losses_sha256": hashlib.sha256(np.array(losses).tobytes()).hexdigest(),
        "seconds": round(time.perf_counter() - started, 1), "machine": processor(), "device": on.pop("device"),
        "versions": ", ".join(f"{name} {value}" for name, value in on.items() if value),
    }  # fmt: skip


def make_all(stage, seeds, folder):
    """Do our runs of a stage that are not in ours.csv yet, and add them there."""
    path = folder / "ours.csv"
    for seed in seeds:
        for cut in (False, True) if stage in (0, 5) else (False,):
            rows = read(path)
            if not ((rows["stage"] == stage) & (rows["cut"] == int(cut)) & (rows["seed"] == seed)).any():
                row = pandas.DataFrame([make(stage, seed, cut)])
                with locked(folder / ".lock"):
                    row.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.12g")
                print(row[["stage", "cut", "seed", "errors", "at_the_end"]].to_string(header=False), flush=True)


def read(path):
    """Return a table of runs, without rows if there is none yet."""
    columns = ["stage", "cut", "gated", "threads", "seed", "steps", "above_5", "at_the_end", "drew_in", "losses_sha256"]
    return pandas.read_csv(path) if path.exists() else pandas.DataFrame(columns=columns)


def welch(ours, theirs, shift=0.0, alternative="two-sided"):
    """Return SciPy's Welch test of the logarithms: whether theirs, shifted, are other than ours."""
    return stats.ttest_ind(np.log(theirs) + shift, np.log(ours), equal_var=False, alternative=alternative)


def compare(ours, theirs, level):
    """Return a dict: both geometric means, the ratio theirs to ours, and the ends of its interval at a level."""
    first, second = np.log(ours).mean(), np.log(theirs).mean()
    ends = welch(ours, theirs).confidence_interval(level)
    found = {"ours": first, "theirs": second, "ratio": second - first, "low": ends.low, "high": ends.high}
    return {name: float(np.exp(value)) for name, value in found.items()}


def equivalence(ours, theirs, margin):
    """Test by two one-sided Welch tests whether the ratio of two geometric means lies between 1 / margin and margin.

    Returns a dict: compare() at 90 %, the margin, and the greater p of the two tests.
    """
    limit = np.log(margin)
    tests = welch(ours, theirs, limit, "greater"), welch(ours, theirs, -limit, "less")
    return {**compare(ours, theirs, 0.9), "margin": margin, "p": float(max(test.pvalue for test in tests))}


def deaths(theirs, ours):
    """Return stage 0 as rows: of each group of runs, how many ended alike, left the path, came back, are dead.

    "chance" counts all that ended at chance, also those that never left the path. "living" is the median of the
    cross-entropies at the end of those that are not dead.
    """
    theirs, ours = (rows[rows["stage"] == 0] for rows in (theirs, ours))
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
    """Return stage 2 as rows: equivalence() of each measure, over all seeds and, as planned, over all but seed 0.

    The last row was not planned: the squared error of the seeds whose drawings had begun in both programs.
    """
    a, b = (rows[rows["stage"] == 2].set_index("seed") for rows in (ours, theirs))
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
    """Return stage 4 as rows: of each program, how many runs began to draw, and after how many steps.

    The median and the quartiles are steps of a run. p is Mann and Whitney's; who has not begun is the last.
    """
    a, b = (rows[rows["stage"] == 4].set_index("seed")["drew_in"].fillna(np.inf) for rows in (ours, theirs))
    both, found = a.index.intersection(b.index), []
    for program, steps in (("ours", a[both]), ("the author's", b[both])) if len(both) else ():
        low, median, high = (float(at) for at in np.quantile(steps, [0.25, 0.5, 0.75], method="inverted_cdf"))
        row = {"program": program, "runs": len(both), "begun": int(np.isfinite(steps).sum())}
        p = float(stats.mannwhitneyu(a[both], b[both]).pvalue)
        found.append({**row, "median": median, "low": low, "high": high, "p": p})
    return found


def same_randomness(theirs, ours):
    """Return stage 5 as rows: after how many steps two programs draw that were dealt the same, two and two.

    Runs that began in both are compared: how far apart they are, Spearman's correlation, and Wilcoxon's p of the pairs.
    """
    ours = ours[ours["stage"] == 5]
    programs = {
        "the author's": theirs[theirs["stage"] == 4], "ours": ours[ours["cut"] == 0],
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
    """Return our five seeds as rows like those of stage 3, one an epoch: seed, steps, errors and two losses."""
    runs = []
    for seed, folder in enumerate(SEEDS):
        epochs = pandas.DataFrame(read_history(ROOT / folder))
        found = {"seed": seed, "steps": epochs["epoch"] * EPOCH, "uncut_loss": epochs["val_classification_loss"]}
        found["errors"] = (10_000 * (1 - epochs["val_classification_accuracy"])).round()
        runs.append(pandas.DataFrame({**found, "autoencoder_loss": epochs["val_autoencoder_loss"]}))
    return pandas.concat(runs)


def last_epochs(theirs, ours):
    """Return stage 3 as rows: of each whole run the errors and losses after the last epoch, and means of 11 to 20."""
    found = []
    for program, rows in (("the author's", theirs[theirs["stage"] == 3]), ("ours", ours)):
        for seed, run in rows.groupby("seed"):
            if len(run) == EPOCHS:
                late = run.sort_values("steps")[WHOLE].tail(EPOCHS // 2)
                last = {name: float(late[name].iloc[-1]) for name in WHOLE}
                means = {f"late_{name}": float(late[name].mean()) for name in WHOLE}
                found.append({"program": program, "seed": int(seed), **last, **means})
    return found


def mean_ratios(found):
    """Return, of the rows of last_epochs(), compare() of each measure at 95 %; nothing of fewer than two runs."""
    groups = [pandas.DataFrame([row for row in found if row["program"] == name]) for name in ("ours", "the author's")]
    whens = {"": "after 20 epochs", "late_": "mean of epochs 11 to 20"} if min(map(len, groups)) > 1 else {}
    return [
        {"name": f"{NAMES[measure]}, {title}", **compare(*(runs[when + measure] for runs in groups), 0.95)}
        for measure in WHOLE
        for when, title in whens.items()
    ]


def summarise(theirs, ours):
    """Return what the rows of both programs say, a dict: for each stage that has rows, a list of dicts."""
    found = {"stage 0": deaths(theirs, ours), "stage 2": equivalences(theirs, ours)}
    found["stage 3"] = last_epochs(theirs, our_runs()) if (theirs["steps"] == EPOCHS * EPOCH).any() else []
    found["stage 3, means"] = mean_ratios(found["stage 3"])
    found |= {"stage 4": beginnings(theirs, ours), "stage 5": same_randomness(theirs, ours)}
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

    theirs are rows of stage 3; of a run that is not whole, the line ends early.
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
    parser.add_argument("--make", type=int, choices=(0, 2, 4, 5), help="do our runs of this stage")
    parser.add_argument("--seeds", type=int, nargs="+", help="of these seeds only")
    args = parser.parse_args(argv)
    folder = args.output_dir
    if args.make is not None:
        make_all(args.make, args.seeds or (STAGE_2_SEEDS if args.make else STAGE_0_SEEDS), folder)
        return
    theirs, ours = (read(folder / name) for name in ("runs.csv", "ours.csv"))
    summary = summarise(theirs, ours)
    for stage, made in tables(summary).items():
        print(f"{stage}:\n{made}\n")
    whole_trainings = theirs[theirs["stage"] == 3]
    if len(whole_trainings):
        with picture_style():
            save_figure(draw_errors(whole_trainings), folder / "errors.png")
    write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    cli.start(main)
