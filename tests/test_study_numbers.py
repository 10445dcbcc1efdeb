"""The numbers of three pages, the study, faithful.md and results.md, from their rows: by pandas and SciPy alone."""

import re

import numpy as np
import pandas
import pytest
from conftest import REFERENCE, ROOT, STUDY
from scipy import stats

PAGES = ("docs/second_task.md", "docs/second_task.ja.md")


@pytest.fixture(scope="module")
def rows():
    return pandas.read_csv(STUDY / "runs.csv")


def numbers(page, heading):
    """The numbers in the rows of the table under a heading, after its first cell, as texts."""
    text = (ROOT / page).read_text(encoding="utf-8").replace(",", "")
    table = re.search(rf"(?m)^\|.*{heading}.*\n\|[ -|]+\n((?:\|.*\n)+)", text).group(1)
    return [re.findall(r"[-+]?\d+(?:\.\d+)?", line.split("|", 2)[2]) for line in table.splitlines()]


def hold(texts, values):
    """Assert that numbers, as texts, are values, rounded to as many places as they have."""
    for text, value in zip(texts, values, strict=True):
        assert abs(float(text) - value) <= 0.501 * 10.0 ** -len(text.partition(".")[2]), (texts, values)


def arm(rows, measure, weight, part, **settings):
    """A measure of one arm by seed; of several rows a seed the mean."""
    chosen = rows[
        (rows["part"] == part) & (rows["autoencoder_weight"] == weight) & (rows["classification_weight"] == 0.9)
    ]
    for name, values in settings.items():
        chosen = chosen[chosen[name].isin(np.atleast_1d(values))]
    return chosen.groupby("seed")[measure].mean()


def difference(first, second):
    """Both means, the mean difference and the ends of Student's interval."""
    paired = (first - second).to_numpy()
    assert len(paired) == len(first) == len(second)
    low, high = stats.t.interval(0.95, len(paired) - 1, paired.mean(), stats.sem(paired))
    return [first.mean(), second.mean(), paired.mean(), low, high]


def steps_until(rows, weight, part, limit):
    """Geometric interpolation of the steps after which a part's runs have fewer errors than the limit, by seed."""
    table = rows[(rows["part"] == part) & (rows["autoencoder_weight"] == weight)]
    found = {}
    for seed, run in table.groupby("seed"):
        steps, errors = run.sort_values("steps")[["steps", "errors"]].to_numpy(float).T
        if min(errors) >= limit:
            found[seed] = np.log(250)  # as planned for part F
            continue
        after = np.flatnonzero(errors < limit)[0]
        share = np.log(errors[after - 1] / limit) / np.log(errors[after - 1] / errors[after])
        found[seed] = np.log(steps[after - 1]) + share * np.log(steps[after] / steps[after - 1])
    return pandas.Series(found)


@pytest.mark.parametrize("page", PAGES)
def test_the_answer(rows, page):
    late = [1875 * epoch for epoch in range(11, 21)]
    e = {"part": "E", "filters": 64, "images": 1000}
    expected = [
        difference(*(arm(rows, "errors", weight, "A", steps=late) for weight in (0.1, 0))),
        difference(*(arm(rows, "classification_loss", weight, "A", steps=late) for weight in (0.1, 0))),
        np.exp(difference(*(steps_until(rows, weight, "F", 400) for weight in (0.1, 0)))),
        difference(*(arm(rows, "errors", weight, "B") for weight in (0.1, 0))),
        difference(arm(rows, "errors", 10, **e, unlabelled=96), arm(rows, "errors", 0, **e)),
        difference(
            arm(rows, "errors", 10, **{**e, "images": 100}, unlabelled=96),
            arm(rows, "errors", 0, **{**e, "images": 100}),
        ),
    ]
    for shown, found in zip(numbers(page, "95 ?%"), expected, strict=True):
        hold(shown[-5:], found)


def test_few_labels(rows):
    def of(weight, unlabelled, images):
        return arm(rows, "errors", weight, "E", filters=64, images=images, unlabelled=unlabelled)

    planned = [(of(10, 96, images), of(weight, 0, images)) for images in (100, 1000) for weight in (0, 10)]
    p = np.array([stats.ttest_rel(*pair).pvalue for pair in planned])
    holm = np.maximum.accumulate(np.sort(p) * [4, 3, 2, 1]).clip(max=1)[p.argsort().argsort()]
    said = numbers("docs/second_task.md", "Holm's p")
    for row, pair, corrected in zip(said, planned, holm):
        hold(row[-4:], [*difference(*pair)[2:], corrected])
    hold(said[4][-3:], difference(of(10, 0, 100), of(0, 0, 100))[2:])


def test_which_task_learns_faster(rows):
    """Part C: losses as shares of the untrained ones, means of five seeds, and that of a uniform grey."""
    text = " ".join((ROOT / "docs/second_task_details.md").read_text(encoding="utf-8").split())
    section = text.partition("## C: which")[2].partition("## C2")[0]
    with np.load(ROOT / "data" / "mnist.npz") as file:
        grey = (file["x_test"] / 255).var()
    percent, untrained = {}, {}
    for weight in (0.5, 0.9):
        for loss in ("classification_loss", "autoencoder_loss"):
            runs = rows[(rows["part"] == "C") & (rows["classification_weight"] == weight)]
            losses = runs.pivot(index="seed", columns="steps", values=loss)
            percent[weight, loss] = 100 * losses.div(losses[0], axis=0).mean()
            untrained[weight, loss] = losses[0].mean()
    first, second = percent[0.5, "autoencoder_loss"], percent[0.5, "classification_loss"]
    said = re.findall(r"(\d+) %", section)
    hold(said, [first[100], second[100], first[100], second[200], first[200]])
    assert first[100] == pytest.approx(100 * grey / untrained[0.5, "autoencoder_loss"], abs=0.5)
    first, second = percent[0.9, "autoencoder_loss"], percent[0.9, "classification_loss"]
    assert second[200] < first[200] and first[200] > 100 * grey / untrained[0.9, "autoencoder_loss"]


def test_pulls():
    ratios = pandas.read_csv(STUDY / "pulls.csv").pivot(index=["steps", "seed"], columns="weight", values="ratio")
    said = numbers("docs/second_task_details.md", "weight 0.1 . weight 1 .")
    for row, (_, of_step) in zip(said, ratios.groupby("steps"), strict=True):
        for text, value in zip(row, stats.gmean(of_step), strict=True):
            assert float(text) == pytest.approx(value, rel=0.055)  # two digits
    batches = pandas.read_csv(STUDY / "pulls_of_batches.csv")["ratio"]
    (said,) = numbers("docs/second_task_details.md", "of the batches below")
    assert [*map(float, said)] == pytest.approx(np.quantile(batches, [0.25, 0.5, 0.75, 0.95]), rel=0.055)


def test_probabilities(rows):
    said = numbers("docs/second_task.md", "true probability")
    arms = [(images, weight) for images in (100, 1000) for weight in (0, 10)]
    for row, (images, weight) in zip(said, arms, strict=True):
        measures = ("true_probability", "classification_loss", "temperature", "fitted_loss")
        one = {"filters": 64, "images": images, "unlabelled": 0}
        hold(row[-4:], [arm(rows, measure, weight, "E", **one).mean() for measure in measures])


def test_the_authors_program_and_ours_in_small_trainings():
    """Welch's two one-sided tests from means, deviations and numbers of runs, over all seeds and without seed 0."""
    tables = [
        pandas.read_csv(REFERENCE / "original" / name).query("stage == 'small'") for name in ("ours.csv", "runs.csv")
    ]
    planned = [("errors", 1.15), ("classification_loss", 1.2), ("autoencoder_loss", 1.15)]
    seeds = [range(16)] * 3 + [range(1, 16)] * 3
    drew = [set(rows[rows["autoencoder_loss"] < 0.0673]["seed"]) for rows in tables]
    expected = []
    for chosen, (measure, margin) in zip([*seeds, drew[0] & drew[1]], [*planned * 2, planned[2]], strict=True):
        logs = [np.log(rows[rows["seed"].isin(chosen)][measure]) for rows in tables]
        assert [*map(len, logs)] == [len(chosen)] * 2
        (mean, sd, n), (their_mean, their_sd, _) = ((x.mean(), x.std(), len(x)) for x in logs)
        variances = np.array([sd**2, their_sd**2]) / n
        error, freedom = np.sqrt(variances.sum()), (n - 1) * variances.sum() ** 2 / (variances**2).sum()
        half = stats.t.ppf(0.95, freedom) * error
        found = their_mean - mean
        p = [stats.t.sf((np.log(margin) + sign * found) / error, freedom) for sign in (1, -1)]
        ends = np.exp([mean, their_mean, found, found - half, found + half])
        expected.append([*ends, margin, max(p)])
    for said, found in zip(numbers("docs/faithful.md", "90 % interval"), expected, strict=True):
        hold(said, found)


def test_the_race():
    rows = pandas.read_csv(REFERENCE / "original" / "runs.csv").query("stage == 'race'")
    ours = pandas.read_csv(REFERENCE / "original" / "ours.csv").query("stage == 'race'")
    groups = [
        rows[(rows["seed"] == 102) & (rows["threads"] == t) & (rows["gated"] == g)] for t in (0, 1) for g in (0, 1)
    ]
    groups += [rows[(rows["seed"] != 102) & (rows["gated"] == gated)] for gated in (0, 1)]
    groups += [ours[ours["cut"] == cut] for cut in (0, 1)]
    for said, group in zip(numbers("docs/faithful.md", "left the path"), groups, strict=True):
        left, end = group["above_5"] > 0, group["at_the_end"]
        counts = [len(group), group["losses_sha256"].nunique(), left.sum()]
        counts += [sum(left & (end <= 2)), sum((end > 2) & (end <= 5)), sum(end > 5)]
        assert [*map(float, said[-7:-1])] == counts
        hold(said[-1:], [np.median(end[end <= 5])])


@pytest.fixture(scope="module")
def whole_trainings():
    """Of 20 epochs, by program and seed: a table of the errors and losses after each."""
    measures = ["errors", "uncut_loss", "autoencoder_loss"]
    rows = pandas.read_csv(REFERENCE / "original" / "runs.csv").query("stage == 'whole'")
    theirs = {seed: run[measures].reset_index(drop=True) for seed, run in rows.groupby("seed") if len(run) == 20}
    folders = [REFERENCE, *(REFERENCE / "seeds" / seed for seed in "12")]
    folders += [STUDY / "A" / f"A-0.9-0.1-seed{seed}" for seed in (3, 4)]
    ours = {}
    for seed, folder in enumerate(folders):
        run = pandas.read_csv(folder / "history.csv")
        values = (
            10_000 - 10_000 * run["val_classification_accuracy"],
            run["val_classification_loss"],
            run["val_autoencoder_loss"],
        )
        ours[seed] = pandas.DataFrame(dict(zip(measures, values)))
        assert len(run) == 20
    return {"theirs": theirs, "ours": ours}


def test_the_authors_whole_trainings(whole_trainings):
    runs = [(seed, run) for program in whole_trainings.values() for seed, run in program.items()]
    for (said, *texts), (seed, run) in zip(numbers("docs/faithful.md", "errors after 20 epochs"), runs, strict=True):
        assert int(said) == seed
        last, *losses = run.iloc[-1]
        hold(texts, [last, run["errors"][10:].mean(), *losses])


def test_the_means_of_the_whole_trainings(whole_trainings):
    """Welch's interval at 95 %, of the logarithms, by SciPy."""
    expected = []
    for measure in ("errors", "uncut_loss", "autoencoder_loss"):
        for epochs in (slice(19, 20), slice(10, 20)):
            theirs, ours = (
                [np.log(run[measure][epochs].mean()) for run in runs.values()] for runs in whole_trainings.values()
            )
            ends = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)
            expected.append(np.exp([np.mean(ours), np.mean(theirs), np.mean(theirs) - np.mean(ours), *ends]))
    for said, found in zip(numbers("docs/faithful.md", "mean of the runs"), expected, strict=True):
        hold(said, found)


def test_the_results(rows, whole_trainings):
    alone = rows[(rows["part"] == "A") & (rows["autoencoder_weight"] == 0)].sort_values("steps")
    groups = [*(runs.values() for runs in whole_trainings.values()), [run for _, run in alone.groupby("seed")]]
    expected = [[99.33, 67]]
    for runs in groups:
        for epochs in (1, 10):
            errors = np.concatenate([run["errors"].to_numpy()[-epochs:] for run in runs])
            mean, least, greatest = errors.mean(), errors.min(), errors.max()
            expected.append([*(100 - np.array([mean, greatest, least]) / 100), mean, least, greatest])
    for said, found in zip(numbers("docs/results.md", "errors in 10000"), expected, strict=True):
        hold(said, found)


def test_when_the_decoders_begin():
    tables = [
        pandas.read_csv(REFERENCE / "original" / name).query("stage == 'first_steps'")
        for name in ("ours.csv", "runs.csv")
    ]
    late = [rows["drew_in"].fillna(401) for rows in tables]  # after the last step, whenever that is
    p = stats.mannwhitneyu(*late).pvalue
    for said, steps in zip(numbers("docs/faithful.md", "median step"), late, strict=True):
        assert len(steps) == 16
        ordered = sorted(steps)
        hold(said, [16, sum(step <= 400 for step in ordered), ordered[7], ordered[3], ordered[11], p])


def test_the_same_random_numbers():
    theirs, ours = (pandas.read_csv(REFERENCE / "original" / name) for name in ("runs.csv", "ours.csv"))
    programs = [
        theirs.query("stage == 'first_steps'"),
        ours.query("stage == 'same_numbers' and cut == 0"),
        ours.query("stage == 'same_numbers' and cut == 1"),
    ]
    for said, (i, j) in zip(numbers("docs/faithful.md", "rank correlation"), [(0, 1), (0, 2), (1, 2)], strict=True):
        a, b = programs[i].merge(programs[j], on="seed")[["drew_in_x", "drew_in_y"]].to_numpy().T
        later = (b - a)[~np.isnan(a + b)]
        ranks = np.corrcoef(*(stats.rankdata(x[~np.isnan(a + b)]) for x in (a, b)))[0, 1]
        found = [16, sum(a > 0), sum(b > 0), sum(later > 0), np.median(later), np.median(abs(later)), abs(later).max()]
        hold(said[-9:], [*found, ranks, stats.wilcoxon(later).pvalue])
