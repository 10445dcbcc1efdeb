"""The arithmetic of the study's answer, against numbers worked out by hand or by SciPy's own tests."""

import numpy as np
import pytest
from scipy import stats

from experiments.answer import (
    ALONE,
    by_weights,
    compare,
    compare_ends,
    compare_epochs,
    difference,
    draw_errors,
    draw_speed,
    draw_weights,
    interval,
    shares_of_untrained,
    summarise_study,
    table_of_epochs,
    table_of_weights,
    with_interval,
)
from experiments.second_task import COLUMNS


def row(part, weight, seed, errors, steps=1250, **more):
    found = dict.fromkeys(COLUMNS, 1) | {"part": part, "classification_weight": 0.9, "autoencoder_weight": weight}
    found |= {"seed": seed, "steps": steps, "errors": errors, "images": 1000, "test_images": 10_000}
    return {**found, "classification_loss": errors / 1000, "autoencoder_loss": 0.1, **more}


def test_interval_by_hand():
    """Of 1, 2, 3: mean 2, standard deviation 1, so a standard error of 0.577, times Student's 4.303."""
    found = interval([1, 2, 3])
    assert found["mean"] == 2
    assert found["standard_error"] == pytest.approx(3**-0.5)
    assert (found["from"], found["to"]) == (pytest.approx(-0.484, abs=1e-3), pytest.approx(4.484, abs=1e-3))


def test_difference_is_taken_pair_by_pair():
    random = np.random.default_rng(0)
    baseline = random.normal(100, 50, 16)
    values = baseline + random.normal(2, 1, 16)  # small beside the seeds' spread, and yet seen
    found = difference(values, baseline)
    test = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (found["from"], found["to"]) == (pytest.approx(test.low), pytest.approx(test.high))
    assert found["from"] > 0
    # Four studies of five see an effect of this size: their intervals leave out 0.
    seen = 0
    for _ in range(2000):
        pairs = random.normal(found["visible_effect"], found["standard_error"] * 4, 16)
        seen += interval(pairs)["from"] > 0
    assert seen / 2000 == pytest.approx(0.8, abs=0.05)


def test_only_seeds_that_every_weight_has_are_compared():
    rows = [row("B", 0, seed, 500 + seed) for seed in range(4)] + [row("B", 1, seed, 480 + seed) for seed in (3, 1, 2)]
    arms = by_weights(rows, "B")
    assert {weights: list(seeds) for weights, seeds in arms.items()} == {(0.9, 0): [1, 2, 3], (0.9, 1): [1, 2, 3]}
    found = compare(arms)
    assert found["1"]["errors"]["difference"]["mean"] == -20
    assert found["1"]["errors"]["difference"]["standard_error"] == 0
    assert found["1"]["errors"]["difference"]["less"] == 3
    assert found["0"]["errors"]["mean"] == 502
    assert "difference" not in found["0"]["errors"]
    assert by_weights(rows, "A") == {}


def test_epochs_are_compared_pair_by_pair():
    """Two seeds, 11 epochs: both tasks make 2 and 4 errors less than the classifier alone, in every epoch."""
    alone = np.array([np.arange(20, 9, -1), np.arange(40, 29, -1)])
    found = compare_epochs({0.1: alone - np.array([[2], [4]]), ALONE: alone})
    assert found["errors"]["0"][0] == 30
    assert [each["mean"] for each in found["difference"]] == [-3] * 11
    assert found["last"]["0"]["mean"] == pytest.approx((14.5 + 34.5) / 2)  # the first epoch is not among the last ten
    assert found["first"]["0"]["mean"] == pytest.approx((18 + 38) / 2)
    for name in ("first_difference", "last_difference"):
        assert found[name]["mean"] == -3
        assert found[name]["standard_error"] == pytest.approx(1)
    assert found["last_deviate"] == pytest.approx(np.std(np.arange(10), ddof=1))
    assert found["seeds_deviate"] == pytest.approx((20 + 18) / 2 / 2**0.5)


def test_table_of_a_short_study_has_its_epochs_only():
    curves = {0.1: np.array([[9, 5], [7, 3]]), ALONE: np.array([[19, 15], [17, 13]])}
    table = table_of_epochs(compare_epochs(curves))
    epochs = [line.split(" | ")[0] for line in table[2:]]
    assert epochs == ["| 1", "| 2", "| mean of the first 5", "| mean of the last 10"]
    assert table[2] == "| 1 | 8 | 18 | -10 (-10 to -10) |"


def test_parts_without_a_whole_comparison_are_left_out():
    """A part is in the summary only with both of its arms, or with the classifier alone and another, and two seeds."""
    few = [row("B", weight, seed, 500) for weight in (1, 10) for seed in (0, 1)]
    equal = [row("C", 0.5, seed, 100, steps, classification_weight=0.5) for seed in (0, 1) for steps in (0, 50)]
    assert set(summarise_study(few + equal, {}, shares_of_untrained(equal))) == {"level", "power", "test_images", "D"}
    few += [row("B", 0, seed, 500) for seed in (0, 1)]
    equal += [row("C", 0.1, seed, 100, steps) for seed in (0, 1) for steps in (0, 50)]
    found = summarise_study(few + equal, {}, shares_of_untrained(equal))
    assert set(found) == {"level", "power", "test_images", "B", "C", "C_end", "D"}


def test_ends_are_compared_pair_by_pair():
    rows = [
        row("C", second, seed, 100 * seed + steps + drop, steps, classification_weight=first)
        for first, second, drop in ((0.5, 0.5, 0), (0.9, 0.1, -6))
        for seed in (1, 2, 3)
        for steps in (0, 50)
    ]
    found = compare_ends(rows)["errors"]
    assert (found["0.5 0.5"]["mean"], found["0.9 0.1"]["mean"], found["difference"]["mean"]) == (250, 244, -6)


def test_table_of_weights():
    rows = [row("B", weight, seed, 500 + 10 * seed - 7 * weight) for weight in (0, 10) for seed in range(3)]
    heading, line, alone, ten = table_of_weights(compare(by_weights(rows, "B")))
    assert heading.count("|") == line.count("|") == alone.count("|") == ten.count("|") == 7
    assert alone == "| 0 | 510 ± 6 |  | 0.510 ± 0.006 |  | 0.1000 |"
    assert ten == "| 10 | 440 ± 6 | -70 (-70 to -70) | 0.440 ± 0.006 | -0.070 (-0.070 to -0.070) | 0.1000 |"
    assert with_interval({"mean": -0.2, "from": -3, "to": 2.6}, ".0f") == "+0 (-3 to +3)"


def test_weights_chart_shows_means_and_paired_differences():
    rows = [row("B", weight, seed, 500 + 10 * seed - 7 * weight) for weight in (0, 1, 10) for seed in range(3)]
    left, right, low_left, low_right = draw_weights(by_weights(rows, "B")).axes
    means = [[bar[0].get_ydata()[0] for bar in axes.containers] for axes in (left, right, low_left, low_right)]
    assert means[:2] == [pytest.approx([510, 503, 440]), pytest.approx([-7, -70])]
    assert means[2:] == [pytest.approx([0.51, 0.503, 0.44]), pytest.approx([-0.007, -0.07])]
    ticks = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in (left, right)]
    assert ticks == [["0", "1", "10"], ["1", "10"]]


def test_errors_chart_names_its_arms():
    curves = {0.1: np.array([[9, 5], [7, 3]]), ALONE: np.array([[19, 15], [17, 13]])}
    axes = draw_errors(curves).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"both tasks, 0.9 and 0.1: mean": [8, 4], "classifier alone, 0.9 and 0: mean": [18, 14]}


def test_losses_as_shares_of_the_untrained():
    rows = [
        row("C", 0.5, seed, 0, steps, classification_weight=0.5, classification_loss=c * (seed + 1), autoencoder_loss=a)
        for seed in (0, 1)
        for steps, c, a in ((0, 2.0, 0.2), (25, 1.0, 0.02))
    ]
    shares = shares_of_untrained(rows)
    steps, values = shares[(0.5, 0.5), "classification_loss"]
    assert steps == [0, 25]
    assert values.tolist() == [[1, 0.5], [1, 0.5]]
    assert shares[(0.5, 0.5), "autoencoder_loss"][1] == pytest.approx(np.array([[1, 0.1], [1, 0.1]]))
    lines = draw_speed(shares).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx([100, 50]), pytest.approx([100, 10])]
