"""The arithmetic of the study's answer, against SciPy's, against numbers worked out by hand, and against the rows."""

import itertools

import numpy as np
import pandas
import pytest
from conftest import STUDY
from scipy import stats

from data import load_data, preprocess
from experiments.authors_program import comparison
from experiments.authors_program.shared import BLIND, course
from experiments.second_task import answer
from experiments.second_task.answer import LATE, compare_pairs, comparisons, holm, load, signed, signed_ranks
from experiments.second_task.runs import ALONE, BOTH, LARGE


@pytest.fixture(scope="module")
def recorded():
    """The rows of the recorded study, and what the program makes of them."""
    rows = load(STUDY)
    return rows, comparisons(rows)


def pairs_of(arm, baseline, measure="errors", **settings):
    """A measure of two arms, from runs.csv and by seed, without the program. "0.9 10 96": with 96 unlabelled images."""
    rows = pandas.read_csv(STUDY / "runs.csv")
    for name, value in settings.items():
        rows = rows[rows[name] == value]

    def of(text):
        first, second, *others = map(float, text.split())
        chosen = rows[(rows["classification_weight"] == first) & (rows["autoencoder_weight"] == second)]
        return chosen[chosen["unlabelled"] == sum(others)].sort_values("seed")[measure].to_numpy()

    return of(arm), of(baseline)


def test_intervals_are_scipys(recorded):
    for arm, measure in ((BOTH, "errors"), ("0.9 1", "errors"), (LARGE, "errors"), (LARGE, "classification_loss")):
        values, baseline = pairs_of(arm, ALONE, measure, part="B")
        found = recorded[1].query(f"part == 'B' and arm == '{arm}' and measure == '{measure}'").iloc[0]
        differences = values - baseline
        assert found["pairs"] == len(differences) == 16
        assert (found["mean"], found["baseline_mean"]) == pytest.approx((values.mean(), baseline.mean()))
        low, high = stats.t.interval(0.95, 15, differences.mean(), stats.sem(differences))
        assert (found["difference"], found["from"], found["to"]) == pytest.approx((differences.mean(), low, high))
        assert found["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_signed_ranks_interval_is_what_wilcoxons_test_does_not_reject():
    random = np.random.default_rng(0)
    differences = random.normal(5, 10, 16)
    found = signed_ranks(differences)
    inside = [
        shift
        for shift in np.linspace(found["median_from"] - 2, found["median_to"] + 2, 400)
        if stats.wilcoxon(differences - shift, method="exact").pvalue > 0.05
    ]
    assert (min(inside), max(inside)) == pytest.approx((found["median_from"], found["median_to"]), abs=0.05)
    assert found["median_from"] < found["median"] < found["median_to"]
    # One run far away does not matter.
    assert signed_ranks(np.where(differences == differences.max(), 1000, differences))["median"] < found["median"] + 3
    few = signed_ranks(np.array([1.0, 2.0, 6.0]))
    assert few["median"] == 2.75  # of 1, 1.5, 2, 3.5, 4, 6
    assert np.isnan(few["median_from"])


def test_interval_by_hand():
    """Of differences 1, 2, 3: mean 2, standard deviation 1, so a standard error of 0.577, times Student's 4.303."""
    found = compare_pairs(np.array([11, 22, 33]), np.array([10, 20, 30]))
    assert (found["pairs"], found["mean"], found["baseline_mean"], found["difference"]) == (3, 22, 20, 2)
    assert (found["from"], found["to"]) == pytest.approx((-0.484, 4.484), abs=1e-3)


def test_holms_correction_by_hand():
    assert holm(np.array([0.04, 0.01, 0.5, 0.02])) == pytest.approx([0.08, 0.04, 0.5, 0.06])
    assert holm(np.array([0.3, 0.4, 0.9])) == pytest.approx([0.9, 0.9, 0.9])


def test_images_without_labels_are_judged_as_planned(recorded):
    """Part E's primary differences, Holm's correction among them.

    A p counts as often as there are p that are not less, and not less than a smaller one does.
    """
    rows = recorded[1].query("part == 'E' and measure == 'errors'")
    baselines, p, corrected = {"L0": ALONE, "L10": LARGE}, [], []
    for images, baseline in itertools.product((100, 1000), baselines):
        values, less = pairs_of("0.9 10 96", baselines[baseline], part="E", images=images, filters=64)
        query = f"filters == 64 and images == {images} and arm == 'U10' and baseline == '{baseline}'"
        found, test = rows.query(query).iloc[0], stats.ttest_rel(values, less)
        assert found["difference"] == pytest.approx((values - less).mean())
        assert (found["from"], found["to"]) == pytest.approx((*test.confidence_interval(0.95),))
        p.append(test.pvalue)
        corrected.append(found["p_holm"])
    assert len(p) == rows["p_holm"].count()
    for own, found in zip(p, corrected):
        counted = [one * sum(other >= one for other in p) for one in p if one <= own]
        assert found == pytest.approx(min(1, max(counted)))


def test_epochs_are_averaged_run_by_run(recorded):
    arms = [pairs_of(BOTH, ALONE, part="A", steps=1875 * epoch) for epoch in range(11, 21)]
    both, alone = np.mean(arms, axis=0)
    found = recorded[1].query(f"part == '{LATE}' and measure == 'errors'")
    assert len(found) == 1
    test = stats.ttest_rel(both, alone)
    assert found.iloc[0]["difference"] == pytest.approx((both - alone).mean())
    assert found.iloc[0]["from"] == pytest.approx(test.confidence_interval(0.95).low)


def test_only_seeds_of_both_arms_are_compared(recorded):
    rows = recorded[0]
    less = rows[~((rows["part"] == "B") & (rows["arm"] == LARGE) & (rows["seed"] < 4))]
    found = comparisons(less).query("part == 'B' and measure == 'errors'").set_index("arm")
    assert found["pairs"].to_dict() == {BOTH: 16, "0.9 1": 16, LARGE: 12}
    values, baseline = pairs_of(LARGE, ALONE, part="B")
    assert found.loc[LARGE, "difference"] == pytest.approx((values - baseline)[4:].mean())


def test_a_small_difference_keeps_its_sign():
    assert [signed(number, 0) for number in (-0.25, 7.6, -32.9, 0, 0.04)] == ["-0.2", "+8", "-33", "+0", "+0.04"]


def first_of(arm):
    """The errors of part A's five seeds after the first epoch."""
    return pairs_of(arm, ALONE if arm == BOTH else BOTH, part="A", steps=1875)[0]


def test_charts_show_means_and_paired_differences(recorded):
    figure = answer.draw_weights(*recorded)
    upper, _, lower, _ = figure.axes
    values = [pairs_of(arm, ALONE, part="B") for arm in (BOTH, "0.9 1", LARGE)]
    means = [bar[0].get_ydata() for bar in upper.containers]
    assert means[0] == pytest.approx([values[0][1].mean(), *(arm.mean() for arm, _ in values)])
    assert lower.containers[0][0].get_ydata() == pytest.approx([(arm - alone).mean() for arm, alone in values])
    assert [tick.get_text() for tick in upper.get_xticklabels()] == ["none", "weight 0.1", "weight 1", "weight 10"]
    assert [text.get_text() for text in upper.texts] == [" seed 4"]

    half = stats.t.ppf(0.975, 15) * np.std(values[0][1], ddof=1) / 4
    ends = upper.containers[0][2][0].get_segments()[0][:, 1]
    assert ends == pytest.approx([means[0][0] - half, means[0][0] + half])

    left, right = answer.draw_errors(*recorded).axes
    band = left.collections[0].get_paths()[0].vertices
    at_first = band[np.isclose(band[:, 0], 1), 1]
    assert (at_first.min(), at_first.max()) == pytest.approx((first_of(BOTH).min(), first_of(BOTH).max()))
    first = pairs_of(BOTH, ALONE, part="A", steps=1875)
    lines = {line.get_label(): line.get_ydata()[0] for line in left.lines}
    assert lines == {"both tasks": first[0].mean(), "the classifier alone": first[1].mean()}
    assert right.containers[0][0].get_ydata()[0] == pytest.approx((first[0] - first[1]).mean())


def test_charts_of_few_labels_and_of_the_first_steps(recorded):
    """In the table's order, each comparison under its names; and a line for every run."""
    panels = answer.draw_labels(*recorded).axes
    for panel, images in zip(panels, (100, 1000)):
        pairs = [("0.9 10", ALONE), ("0.9 1 96", ALONE), ("0.9 10 96", ALONE), ("0.9 10 96", LARGE)]
        both = [pairs_of(*pair, part="E", filters=64, images=images) for pair in pairs]
        means = [(first - second).mean() for first, second in both]
        assert panel.containers[0][0].get_ydata() == pytest.approx(means)
        names = [" ".join(tick.get_text().split()) for tick in panel.get_xticklabels()]
        assert names[0] == "both, weight 10 less classifier alone"
        assert names[3] == "both, weight 10, and unlabelled images less both, weight 10"
    panels = answer.draw_first_steps(*recorded).axes
    for panel, (part, seeds, last, images) in zip(panels, (("C2", 16, 800, 10_000), ("F", 32, 250, 2000)), strict=True):
        assert len(panel.lines) == 2 * (seeds + 1) + 1  # a mean for each arm, and one line at 20 %
        wrong = 100 * pairs_of(BOTH, ALONE, part=part, steps=last)[0] / images
        assert sorted(line.get_ydata()[-1] for line in panel.lines[:seeds]) == pytest.approx(sorted(wrong))
        assert panel.lines[seeds].get_ydata()[-1] == pytest.approx(stats.gmean(wrong))


@pytest.mark.filterwarnings("ignore")  # of so few pairs SciPy says that they are few
@pytest.mark.parametrize("query", ["seed < 2", "part == 'A'", "part not in ('C2', 'F') or autoencoder_weight == 0.1"])
def test_a_study_that_is_small_or_not_done_is_answered_too(query, tmp_path):
    """In miniature: few seeds, few images, and fewer errors than 2,000 from the first measurement on."""
    rows = pandas.read_csv(STUDY / "runs.csv", keep_default_na=False).query(query)
    small = rows.assign(errors=rows["errors"] // 50, images=rows["images"].replace({60_000: 640, 1000: 64, 100: 20}))
    small.to_csv(tmp_path / "runs.csv", index=False)
    rows = answer.load(tmp_path)
    found = answer.comparisons(rows)
    tables = answer.tables(rows, found)
    assert "errors.png" in answer.draw(rows, found)
    assert "More accurate at the end?" in tables["answers"]
    assert "Faster?" not in tables["answers"]


def series(errors, part="F", arm=BOTH, seed=16):
    """Rows of a run in which so many of 2,000 images are wrong after 50, 100, 200 and 250 steps."""
    settings = {"part": part, "arm": arm, "seed": seed, "test_images": 2000}
    return pandas.DataFrame({"steps": [50, 100, 200, 250], "errors": errors}).assign(**settings)


def test_steps_until_a_fifth_is_wrong():
    """By hand: 1,600 and 100 errors, 400 is halfway on a logarithmic axis, and so is 141 between 100 and 200 steps."""
    assert answer.steps_until(series([1800, 1600, 100, 90])) == pytest.approx(np.sqrt(100 * 200))
    assert answer.steps_until(series([1800, 1600, 400, 399])[::-1]) == pytest.approx(200)
    assert answer.steps_until(series([1800, 1600, 400, 400])) == 250  # never fewer than a fifth
    assert np.isnan(answer.steps_until(series([399, 100, 100, 90])))


def test_part_f_is_a_ratio_of_pairs_and_names_who_is_late():
    runs = {
        (BOTH, 16): [1800, 1600, 100, 90],  # 141 steps
        (ALONE, 16): [1600, 100, 90, 80],  # 71
        (BOTH, 17): [1800, 1700, 1650, 1600],  # never: 250
        (ALONE, 17): [1800, 1601, 401, 300],  # just after 200
        (BOTH, 18): [1700, 1600, 100, 90],
        (ALONE, 18): [1800, 1600, 100, 90],
    }
    rows = pandas.concat([series(errors, "F", *which) for which, errors in runs.items()])
    found = answer.compare_steps(rows)
    logarithms = np.log([2, 250 / (200 * 1.25 ** (np.log(401 / 400) / np.log(401 / 300))), 1])
    low, high = stats.t.interval(0.95, 2, logarithms.mean(), stats.sem(logarithms))
    assert found[["difference", "from", "to"]].values.tolist() == [
        pytest.approx(np.exp([logarithms.mean(), low, high]).tolist())
    ]
    table = answer.table_of_first_steps(rows, found).splitlines()
    assert table[-2:] == [
        "| more than 80 % wrong after 100 steps | 1 of 3 | 1 of 3 |  |",
        "| never there | 1 of 3 | 0 of 3 |  |",
    ]
    assert answer.compare_steps(rows[rows["seed"] < 17]).empty


def test_equivalence_is_two_one_sided_welch_tests():
    """Against Welch's formula and Welch and Satterthwaite's degrees of freedom, on the logarithms."""
    random = np.random.default_rng(3)
    ours, theirs = np.exp(random.normal(6, 0.1, 16)), np.exp(random.normal(6.02, 0.14, 12))
    found = comparison.equivalence(ours, theirs, 1.15)
    difference, limit = np.log(theirs).mean() - np.log(ours).mean(), np.log(1.15)
    parts = np.array([np.log(ours).var(ddof=1) / 16, np.log(theirs).var(ddof=1) / 12])
    error, freedom = np.sqrt(parts.sum()), parts.sum() ** 2 / (parts**2 / [15, 11]).sum()
    lower, upper = stats.t.sf((difference + limit) / error, freedom), stats.t.cdf((difference - limit) / error, freedom)
    assert found["p"] == pytest.approx(max(lower, upper))
    assert comparison.equivalence(theirs, ours, 1.15)["p"] == pytest.approx(found["p"])  # the other one decides
    half = stats.t.ppf(0.95, freedom) * error
    ends = np.exp([difference - half, difference, difference + half])
    assert [found[name] for name in ("low", "ratio", "high")] == pytest.approx(ends)
    assert (found["ours"], found["theirs"]) == pytest.approx((stats.gmean(ours), stats.gmean(theirs)))


def test_programs_are_compared_over_the_seeds_of_both_and_without_seed_0():
    values = {measure: np.exp(np.arange(5.0)) for measure in comparison.MARGINS}
    ours = pandas.DataFrame(
        {"stage": "small", "seed": range(5), **values, "autoencoder_loss": [0.02, 0.03, 0.115, 0.02, 1]}
    )
    theirs = ours.assign(errors=2 * ours["errors"], autoencoder_loss=[0.02, 0.03, 0.023, 0.02, 1])[:4][::-1]
    found = comparison.equivalences(theirs, ours)
    assert [one["runs"] for one in found] == [4, 4, 4, 3, 3, 3, 3]  # the last without seed 2: ours does not draw
    assert [one["ratio"] for one in found] == pytest.approx([2, 1, 0.2 ** (1 / 4), 2, 1, 0.2 ** (1 / 3), 1])
    assert (found[0]["ours"], found[3]["ours"]) == pytest.approx((np.exp(1.5), np.exp(2)))
    assert found[6]["ours"] == pytest.approx(stats.gmean([0.02, 0.03, 0.02]))
    assert comparison.equivalences(theirs[:0], ours) == []


def test_whole_trainings_are_told_by_their_last_epochs():
    """A run that is not whole is left out, and ours are those that the study has."""
    steps = 1875 * np.arange(1, 21)
    runs = [
        pandas.DataFrame({"stage": "whole", "seed": seed, "steps": steps, "errors": 100 * seed + steps // 1875})
        .assign(uncut_loss=lambda run: run["errors"] / 1000, autoencoder_loss=lambda run: run["errors"] / 10_000)
        for seed in (0, 1)
    ]  # fmt: skip
    found = comparison.last_epochs(pandas.concat([runs[0][:19], runs[1]]), comparison.our_runs())
    last, late = {"errors": 120}, {"late_errors": 115.5}
    for measure, scale in (("uncut_loss", 1000), ("autoencoder_loss", 10_000)):
        last[measure], late[f"late_{measure}"] = 120 / scale, pytest.approx(115.5 / scale)
    assert found[0] == {"program": "the author's", "seed": 1, **last, **late}
    study = pandas.read_csv(STUDY / "runs.csv").query("part == 'A' and autoencoder_weight == 0.1")
    last = study[study["steps"] == 37_500].sort_values("seed")
    assert [(one["program"], one["seed"], one["errors"]) for one in found[1:]] == [
        ("ours", seed, errors) for seed, errors in zip(last["seed"], last["errors"], strict=True)
    ]
    late = study[study["steps"] > 18_750].groupby("seed").mean(numeric_only=True)
    for measure, column in (("uncut_loss", "classification_loss"), ("autoencoder_loss",) * 2, ("errors",) * 2):
        np.testing.assert_allclose([one[measure] for one in found[1:]], last[column], rtol=1e-4)
        np.testing.assert_allclose([one[f"late_{measure}"] for one in found[1:]], late[column], rtol=1e-4)


def test_whole_trainings_are_compared_by_the_ratios_of_their_means():
    values = {
        f"{when}{measure}": 1.0 for when in ("", "late_") for measure in ("errors", "uncut_loss", "autoencoder_loss")
    }
    theirs = [{"program": "the author's", **values, "late_errors": errors} for errors in (1, 4)]
    ours = [{"program": "ours", **values, "late_errors": errors} for errors in (2, 4, 8)]
    found = comparison.mean_ratios(ours + theirs)
    assert [one["name"].split(",")[0] for one in found] == [*np.repeat(["errors", "cross-entropy", "squared error"], 2)]
    compared = {**found[1]}
    parts = np.log(2) ** 2 * np.array([2 / 2, 1 / 3])  # Welch's variances of both means, with 1 and 2 degrees
    half = stats.t.ppf(0.975, parts.sum() ** 2 / (parts**2 / [1, 2]).sum()) * np.sqrt(parts.sum())
    ends = {"low": pytest.approx(0.5 * np.exp(-half)), "high": pytest.approx(0.5 * np.exp(half))}
    assert compared.pop("name") == "errors, mean of epochs 11 to 20"
    assert compared == {"ours": pytest.approx(4), "theirs": pytest.approx(2), "ratio": pytest.approx(0.5), **ends}
    assert comparison.mean_ratios(ours + theirs[:1]) == []


def test_the_chart_shows_both_programs_and_the_article():
    runs = [
        [seed, 1875 * epoch, 100 + epoch, f"keras 2.1.2, tensorflow {version}, numpy 1.16.6, python 3.6.15"]
        for seed, epochs, version in ((0, 20, "1.4.1"), (2, 3, "1.15.2"))
        for epoch in range(1, epochs + 1)
    ]
    axes = comparison.draw_errors(pandas.DataFrame(runs, columns=["seed", "steps", "errors", "versions"])).axes[0]
    first, second, article = (line.get_xydata() for line in axes.lines)
    np.testing.assert_array_equal(first, [[epoch, 100 + epoch] for epoch in range(1, 21)])
    np.testing.assert_array_equal(second, [[1, 101], [2, 102], [3, 103]])
    assert article[:, 1] == pytest.approx([67, 67])
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.split()[-1] for text in said] == ["seeds", "1.4.1", "1.15.2", "67"]
    assert len({line.get_color() for line in axes.lines}) == 3
    (band,) = axes.collections
    study = pandas.read_csv(STUDY / "runs.csv").query("part == 'A' and autoencoder_weight == 0.1")
    at_an_epoch = study.groupby("steps")["errors"].agg(["min", "max"]).loc[1875 * np.arange(1, 21)]
    drawn = pandas.DataFrame(band.get_paths()[0].vertices).groupby(0)[1].agg(["min", "max"]).loc[range(1, 21)]
    np.testing.assert_allclose(drawn, at_an_epoch)


def test_a_run_draws_when_ten_batches_in_a_row_are_better_than_a_blind_one_in_the_mean():
    least = BLIND
    for steps, drawings in (
        ("", [0.1] * 12 + [least - 0.001] * 9),
        (22, [0.1] * 12 + [least - 0.001] * 10),
        (11, [2 * least, *[least - 0.001] * 9, 0, 0.1]),
    ):
        assert course(drawings, drawings)["drew_in"] == steps


def test_what_a_row_says_of_a_course():
    """By hand: two of twelve losses are above 5, the third and the tenth; the last ten have a mean of 2.5."""
    losses = [1, 1, 6, 1, 1, 1, 1, 1, 1, 10, 1, 2]
    found = course(losses, [1.0] * 12)
    assert found == {"left_in": 3, "above_5": 2, "at_the_end": 2.5, "drew_in": ""}
    assert course([1.0] * 12, [0.0] * 12) == {"left_in": "", "above_5": 0, "at_the_end": 1, "drew_in": 10}


def test_when_the_decoder_begins_is_told_by_ranks():
    """Mann and Whitney's exact test of no common step, and who has not begun is behind all others."""
    ours = pandas.DataFrame({"stage": "first_steps", "seed": range(5), "drew_in": [50, np.nan, 60, 70, 80]})
    theirs = pandas.DataFrame({"stage": "first_steps", "seed": range(4), "drew_in": [10, 20, 30.0, 40]})
    shared = {"runs": 4, "p": pytest.approx(2 / 70)}  # of the 70 ways to mix four and four, two are as far apart
    assert comparison.beginnings(theirs, ours) == [
        {"program": "ours", "begun": 3, "median": 60, "low": 50, "high": 70, **shared},
        {"program": "the author's", "begun": 4, "median": 20, "low": 10, "high": 30, **shared},
    ]
    assert comparison.beginnings(theirs[:0], ours) == []


def test_runs_with_the_same_random_numbers_are_told_in_pairs():
    theirs = pandas.DataFrame({"stage": "first_steps", "seed": range(6), "drew_in": [10, 20, 30, np.nan, 50, 60]})
    ours = pandas.DataFrame(
        {"stage": "same_numbers", "cut": 0, "seed": range(1, 7), "drew_in": [24, 31, 40, 48, np.nan, 70]}
    )
    both = pandas.concat([ours, ours.assign(cut=1, drew_in=ours["drew_in"] + 2)[:-2]])
    found = comparison.same_randomness(theirs, both)
    first = {"first": "the author's", "second": "ours", "runs": 5, "begun_first": 4, "begun_second": 4, "later": 2}
    first |= {"by": 1, "apart": 2, "most": 4}  # 4, 1 and -2 steps later
    assert found[0] == {**first, "correlation": pytest.approx(1), "p": pytest.approx(0.75)}
    second = {"first": "the author's", "second": "ours, cut at 1e-7", "runs": 4, "begun_first": 3, "begun_second": 4}
    second |= {"later": 2, "by": 3, "apart": 3, "most": 6}
    assert {name: found[1][name] for name in second} == second
    third = {"first": "ours", "second": "ours, cut at 1e-7", "runs": 4, "later": 4, "by": 2, "apart": 2, "most": 2}
    assert {name: found[2][name] for name in third} == third
    assert comparison.same_randomness(theirs, ours.assign(stage="first_steps")) == []


def test_a_drawing_that_is_blind_to_its_image_costs_as_much_as_the_program_says():
    images = preprocess(load_data()[0][0])
    assert BLIND == pytest.approx(np.square(images - images.mean(axis=0)).mean(), abs=5e-5)


def test_runs_that_left_came_back_or_died_are_counted():
    columns = ["stage", "seed", "threads", "gated", "above_5", "at_the_end", "losses_sha256"]
    theirs = [
        ["race", 102, 1, 0, 0, 0.5, "a"],
        ["race", 102, 1, 0, 3, 0.7, "b"],
        ["race", 102, 1, 0, 1, 2.3, "e"],
        ["race", 102, 1, 0, 0, 2.3, "f"],
        ["race", 102, 1, 0, 60, 14.0, "c"],
        ["race", 200, 0, 1, 0, 1, "d"],
    ]
    ours = pandas.DataFrame(
        [["race", 200, 0, 0.4, "e"]], columns=["stage", "seed", "above_5", "at_the_end", "losses_sha256"]
    )
    first, second, third = comparison.deaths(pandas.DataFrame(theirs, columns=columns), ours.assign(cut=1))
    assert first == {
        "program": "the author's, as written, one seed", "threads": "1",
        "runs": 5, "ends": 5, "left": 3, "back": 1, "chance": 2, "dead": 1, "living": 1.5,
    }  # fmt: skip
    assert (second["program"], second["threads"], second["dead"]) == ("the author's, gated, 20 seeds", "default", 0)
    assert third["program"] == "ours, cut at 1e-7, 20 seeds"
