"""What the pages say: their figures are those of the records, their commands and links exist."""

import functools
import json
import re

import numpy as np
import pytest
from conftest import REFERENCE, ROOT, STUDY, metrics, succeed

from benchmarks.throughput import summarise, table
from evaluate import report
from experiments.answer import (
    by_weights,
    difference,
    errors_over_epochs,
    shares_of_untrained,
    tables,
    values_over_epochs,
    with_interval,
)
from experiments.answer import summarise as summarise_study
from experiments.second_task import name_of, read_runs
from run_folder import read_history

PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").iterdir())]


def page(name="README.md"):
    """A page of the project as one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def check(text, *sentences):
    """Check that a text holds all of these sentences; the message shows those that it should hold."""
    missing = [sentence for sentence in sentences if sentence not in text]
    assert not missing, "\n".join(missing)


def percent(share, digits=2):
    """Write a share as the pages do: "99.25 %"."""
    return f"{100 * share:.{digits}f} %"


def seeds(rows):
    """Write which seeds these rows are of: "seeds 0 to 4"."""
    numbers = sorted(row["seed"] for row in rows)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"seeds {numbers[0]} to {numbers[-1]}"


def arm_of(rows, weight):
    """Part A's rows with this weight of the reconstruction, seed by seed."""
    return list(by_weights(rows, "A")[0.9, weight].values())


@pytest.fixture(scope="module")
def rows():
    """The rows of the recorded study."""
    return read_runs(STUDY / "runs.csv")


@pytest.fixture(scope="module")
def curves(rows):
    """The errors over the epochs of the recorded study's part A."""
    return errors_over_epochs(rows, STUDY)


@pytest.fixture(scope="module")
def summary(rows, curves):
    """The summary of the recorded study, made from its rows."""
    return summarise_study(rows, curves, shares_of_untrained(rows))


def test_readme_gives_the_results_of_all_seeds(rows):
    text = page()
    for weight, name in ((0.1, "this network"), (0, "the classifier alone")):
        arm = arm_of(rows, weight)
        errors = np.array([row["errors"] for row in arm])
        right = 1 - errors / arm[0]["test_images"]
        means = percent(right.mean()), f"{errors.mean():.0f}"
        ends = f"{percent(right.min())} to {percent(right.max())}", f"{errors.min()} to {errors.max()}"
        accuracy, count = (f"{mean} ({both})" for mean, both in zip(means, ends))
        check(text, f"| {name}, {seeds(arm)}: mean (range) | {accuracy} | {count} |")


def test_readme_says_how_the_accuracy_moves(rows):
    arm = arm_of(rows, 0.1)
    accuracies = values_over_epochs(rows, STUDY, "val_classification_accuracy")[0.1]
    assert accuracies.shape == (len(arm), 20)
    late, first = accuracies[:, 10:], accuracies[:, 0]
    minutes = [row["seconds"] / 60 for row in arm if row["threads"] == 2]
    right = percent(np.mean([1 - row["errors"] / row["test_images"] for row in arm]))
    check(
        page(),
        f"the accuracy moves between {percent(late.min())} and {percent(late.max())}. "
        f"It is {percent(np.mean(late))} on average, and the article's 99.33 % lies inside.",
        f"After 20 epochs it is right on {right} of the test images; the article says 99.33 %.",
        f"one epoch is enough: about {percent(np.mean(first), 1)}, after some",
        f"It takes {min(minutes):.0f} to {max(minutes):.0f} minutes on two cores.",
    )
    assert late.min() < 0.9933 < late.max()


def test_readme_says_what_the_curves_show():
    history = read_history(REFERENCE / "history.csv", 20)
    lowest = min(history, key=lambda row: row["val_classification_loss"])
    check(
        page(),
        f"lowest after epoch {lowest['epoch']:.0f}, at {lowest['val_classification_loss']:.3f}. "
        f"Then it rises again, to {history[-1]['val_classification_loss']:.3f}, while the drawings still get better.",
    )
    assert history[-1]["val_autoencoder_loss"] < lowest["val_autoencoder_loss"]


def test_readme_says_what_the_pictures_show(mnist, predicted):
    labels, (probabilities, _) = mnist[1][1], predicted
    answers, probability = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong, low, high = answers != labels, probability < 0.9, probability >= 0.98
    pairs, counts = np.unique(np.stack([labels[wrong], answers[wrong]]), axis=1, return_counts=True)
    truth, answer = pairs[:, counts.argmax()]
    check(
        page(),
        f"The most frequent error is a {truth} that is taken for a {answer}: {counts.max()} of {wrong.sum()}.",
        f"below 0.90 half of the answers are wrong ({low.sum()} images); "
        f"from 0.98 up it is {percent(wrong[high].mean())} ({high.sum():,} images).",
    )
    assert wrong[low].mean() == pytest.approx(0.5, abs=0.02)


def test_readme_shows_what_evaluate_says():
    lines = report(metrics(REFERENCE))
    assert lines[5].startswith("Accuracy of 0")
    check((ROOT / "README.md").read_text(encoding="utf-8"), "\n".join(["```text", *lines[:5], "```"]))


def test_the_page_on_speed_shows_the_recorded_benchmark():
    recorded = json.loads((REFERENCE / "throughput.json").read_text(encoding="utf-8"))
    found = summarise(recorded["rounds"], recorded["flop_per_image"])
    assert {name: recorded[name] for name in found} == found
    check((ROOT / "docs" / "speed.md").read_text(encoding="utf-8"), "\n".join(table(found)))
    mixed, full = metrics(REFERENCE / "mixed_bfloat16"), metrics(REFERENCE)
    check(
        page("docs/speed.md"),
        f"in `mixed_bfloat16` ended at {percent(mixed['accuracy'])}, {mixed['errors']} errors; "
        f"in `float32` at {percent(full['accuracy'])}, {full['errors']} errors.",
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / name).parent.joinpath(link).exists(), link


@functools.cache
def flags_of(script):
    """The flags that a script says it knows."""
    return set(re.findall(r"--[a-z-]+", succeed(script, "--help")))


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_ones_that_the_scripts_know(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for script, arguments in re.findall(r"python ((?:\w+/)?\w+\.py)([^\n`#&]*)", text):
        unknown = set(re.findall(r"--[a-z-]+", arguments)) - flags_of(script)
        assert not unknown, f"{script}{arguments}"


def test_both_pages_say_the_same():
    """The Japanese page has the code, the pictures and the figures of the English one."""
    english, japanese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))
    assert "(README.ja.md)" in english.split("##")[0]
    assert "(README.md)" in japanese.split("##")[0]
    figures = r"\d[\d,.]*\d ?%|\b0\.\d+|\d,\d{3}"
    assert set(re.findall(figures, page("README.md"))) == set(re.findall(figures, page("README.ja.md")))
    for pattern in (r"```.*?```", r"\]\(([^)]+\.(?:png|md))\)", r"`[^`\n]+`"):
        found = [re.findall(pattern, text, re.DOTALL) for text in (english, japanese)]
        found = [[item for item in items if item not in ("README.md", "README.ja.md")] for items in found]
        assert found[0]
        assert set(found[0]) == set(found[1]), pattern


def flat(tree):
    """The numbers in a tree of dicts and lists, by where they stand."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {(): tree}
    return {(key, *path): number for key, branch in items for path, number in flat(branch).items()}


def test_the_studys_summary_is_of_its_rows(summary):
    recorded = json.loads((STUDY / "summary.json").read_text(encoding="utf-8"))
    assert flat(recorded) == pytest.approx(flat(summary), rel=1e-9, abs=1e-12)


def test_the_page_on_the_second_task_has_the_studys_tables(summary):
    text = (ROOT / "docs" / "second_task.md").read_text(encoding="utf-8")
    found = tables(summary)
    assert found
    check(text, *map("\n".join, found.values()))


def test_what_the_pages_say_of_all_images(summary, curves, rows):
    epochs, ends = summary["A_epochs"], summary["A"]
    count = epochs["first"]["0"]["runs"]
    apart = sum(found["from"] > 0 or found["to"] < 0 for found in epochs["difference"])
    means = {name: [f"{epochs[name][weight]['mean']:.1f}" for weight in ("0.1", "0")] for name in ("first", "last")}
    begins, last = epochs["first_difference"], epochs["last_difference"]
    end, loss = (ends["0.1"][name]["difference"] for name in ("errors", "classification_loss"))
    core_seconds = {name_of(row): row["threads"] * row["seconds"] for row in rows}  # part C has many rows a run
    hours = sum(core_seconds.values()) / 2 / 3600
    losses = values_over_epochs(rows, STUDY, "val_classification_loss")
    each_epoch = [difference(*pair) for pair in zip(losses[0.1].T, losses[0].T)]
    late = difference(*(losses[weight][:, -10:].mean(axis=1) for weight in (0.1, 0)))
    check(
        page("docs/second_task.md"),
        f"Over the first 5 epochs the network with both tasks makes {means['first'][0]} errors on average, and the "
        f"classifier alone {means['first'][1]}: {with_interval(begins, '.1f')}. A difference of "
        f"{begins['visible_effect']:.0f} errors would have been seen.",
        f"With all images, over the last 10 epochs, there are {means['last'][0]} errors with both tasks and "
        f"{means['last'][1]} with the classifier alone: {with_interval(last, '.1f')}. A difference of "
        f"{last['visible_effect']:.0f} errors would have been seen.",
        f"After the last epoch there are {ends['0.1']['errors']['mean']:.0f} and {ends['0']['errors']['mean']:.0f}: "
        f"{with_interval(end, '.0f')}. The cross-entropy is then higher with both tasks in "
        f"{loss['runs'] - loss['less']} of {loss['runs']} pairs: {with_interval(loss, '.4f')}. That interval leaves "
        f"out 0, but it is the only one of the 20 epochs that does, and over the last 10 epochs the difference is "
        f"{with_interval(late, '.4f')}.",
        f"about {hours:.0f} hours on two cores",
        f"The interval of the difference leaves out 0 in {apart or 'none'} of the 20 epochs.",
        f"by {epochs['seeds_deviate']:.0f} errors from seed to seed, and by {epochs['last_deviate']:.0f} from epoch to "
        f"epoch within a run (standard deviations, the last of 10 epochs). In points of accuracy that is "
        f"{epochs['seeds_deviate'] / 100:.2f} and {epochs['last_deviate'] / 100:.2f}.",
    )
    check(
        page(),
        f"Over the first 5 epochs there are {means['first'][0]} errors with both tasks and {means['first'][1]} with "
        f"the classifier alone. The difference is {begins['mean']:+z.1f} (95 % interval {begins['from']:+.1f} to "
        f"{begins['to']:+.1f}).",
        f"Over the last 10 epochs there are {means['last'][0]} and {means['last'][1]}: {with_interval(last, '.1f')}.",
        f"chance alone moves the errors by {epochs['seeds_deviate']:.0f} from seed to seed, and by "
        f"{epochs['last_deviate']:.0f} from epoch to epoch",
        f"Recorded, after 20 epochs, {count} seeds: {ends['0']['errors']['mean']:.0f} errors on average. The article's "
        f"weights: {ends['0.1']['errors']['mean']:.0f}.",
        f"All images, {count} seeds. A line is the mean; its band goes from the least to the greatest.",
    )
    # "No difference was seen"; "The bands lie over each other from the first epoch to the last".
    assert begins["from"] < 0 < begins["to"] and last["from"] < 0 < last["to"] and end["from"] < 0 < end["to"]
    assert [found["from"] < 0 < found["to"] for found in each_epoch] == 19 * [True] + [False]
    assert late["from"] < 0 < late["to"]
    alone, both = curves.values()
    assert both.shape == alone.shape == (count, 20)
    assert (both.min(axis=0) <= alone.max(axis=0)).all() and (alone.min(axis=0) <= both.max(axis=0)).all()


def test_what_the_pages_say_of_few_images(summary):
    alone, article, large = (summary["B"][weight] for weight in ("0", "0.1", "10"))
    errors = {weight: f"{arm['errors']['mean']:.0f}" for weight, arm in summary["B"].items()}
    found, of_large = article["errors"]["difference"], large["errors"]["difference"]
    loss = large["classification_loss"]["difference"]
    better = (
        f"the cross-entropy falls from {alone['classification_loss']['mean']:.3f} to "
        f"{large['classification_loss']['mean']:.3f}"
    )
    check(
        page("docs/second_task.md"),
        f"the classifier alone makes {errors['0']} errors, and {errors['0.1']} with the article's weight of 0.1: "
        f"{with_interval(found, '.0f')}. A difference of {found['visible_effect']:.0f} errors would have been seen.",
        f"Even with a weight of 10 there are {errors['10']} errors: {with_interval(of_large, '.0f')}.",
        f"{better}, {with_interval(loss, '.3f')}. It is lower in {loss['less']} of {loss['runs']} pairs.",
        f"the squared error falls from {article['autoencoder_loss']['mean']:.4f} to "
        f"{large['autoencoder_loss']['mean']:.4f}",
    )
    check(
        page(),
        f"{errors['0.1']} errors with the article's weights, {errors['0']} alone: {with_interval(found, '.0f')}.",
        f"{better}.",
    )
    # "No difference was seen", but for the cross-entropy.
    assert found["from"] < 0 < found["to"] and of_large["from"] < 0 < of_large["to"] and loss["to"] < 0


def test_what_the_page_says_of_speed(summary, rows, mnist):
    left = {
        (weights, loss): dict(zip(found["steps"], found["share"]))
        for weights in ("0.5 0.5", "0.9 0.1")
        for loss in ("classification", "autoencoder")
        for found in [summary["C"][f"{weights} {loss}_loss"]]
    }
    classification, drawing = left["0.5 0.5", "classification"], left["0.5 0.5", "autoencoder"]
    blank = np.square(mnist[1][0] / 255).mean()
    untrained = np.mean([row["autoencoder_loss"] for row in rows if row["part"] == "C" and row["steps"] == 0])
    ends, squared = summary["C_end"]["errors"], summary["C_end"]["autoencoder_loss"]
    seen = f"{ends['difference']['visible_effect']:.0f} errors"
    check(
        page("docs/second_task.md"),
        f"After 50 steps {percent(drawing[50], 0)} of its loss is left, and {percent(classification[50], 0)} of the "
        f"classification's.",
        f"A blank sheet has a loss of {blank:.3f}, {percent(blank / untrained, 0)} of the untrained network's.",
        f"After 200 steps {percent(classification[200], 0)} of the classification's loss is left, and "
        f"{percent(drawing[200], 0)} of the reconstruction's; after the whole epoch {percent(classification[1875], 1)} "
        f"and {percent(drawing[1875], 1)}.",
        f"{ends['0.9 0.1']['mean']:.0f} errors with 9 to 1 and {ends['0.5 0.5']['mean']:.0f} with equal weights: "
        f"{with_interval(ends['difference'], '.0f')}. A difference of {seen} "
        f"would have been seen. The squared error is {squared['0.9 0.1']['mean']:.3f} instead of "
        f"{squared['0.5 0.5']['mean']:.3f}: {with_interval(squared['difference'], '.3f')}.",
    )
    assert ends["difference"]["from"] < 0 < ends["difference"]["to"] and squared["difference"]["from"] > 0


def test_what_the_page_says_of_the_machines(rows):
    elsewhere = {name_of(row): row["machine"] for row in rows if row["machine"] != "AMD EPYC, family 26, model 2"}
    xeon = "Intel(R) Xeon(R) Processor, family 6, model 207"
    assert elsewhere == {
        "A-0.9-0.1-seed0": "AMD EPYC, Zen 4",
        "A-0.9-0.1-seed1": "AMD EPYC, Zen 4",
        "A-0.9-0.1-seed2": "Intel Xeon with AMX",
        "A-0.9-0.1-seed4": xeon,
        "A-0.9-0-seed4": xeon,
    }
    assert {row["versions"] for row in rows} == {"keras 3.15.1, numpy 2.4.6, python 3.11.7, tensorflow 2.21.0"}
    check(
        page("docs/second_task.md"),
        "All runs used Python 3.11.7, TensorFlow 2.21.0, Keras 3.15.1 and NumPy 2.4.6. They ran on an AMD EPYC "
        "(Zen 5), but for five of part A. With both tasks, seeds 0 and 1 ran on an AMD EPYC (Zen 4) and "
        "seed 2 on an Intel Xeon with AMX, before there was a study. Seed 4 ran on an Intel Xeon without "
        "AMX, with both tasks and with one.",
    )


def test_what_the_second_task_costs():
    found = json.loads((STUDY / "step_time.json").read_text(encoding="utf-8"))
    times, ratio = found["milliseconds_a_step"], found["ratio"]
    ratios = sorted(one / other for one, other in zip(times["with_decoder"], times["without_decoder"]))
    assert (ratio["least"], ratio["median"], ratio["greatest"]) == (ratios[0], np.median(ratios), ratios[-1])
    text = "takes {median:.2f} ({least:.2f} to {greatest:.2f}) times as long as one without it".format(**ratio)
    check(page("docs/second_task.md"), text)


def test_readme_gives_the_results_of_its_experiments(rows):
    """Part D, beside what the article's weights give after as many epochs."""
    done = {row["filters"]: row for row in rows if row["part"] == "D"}
    usual = read_history(REFERENCE / "history.csv")[4]
    errors = round(10_000 * (1 - usual["val_classification_accuracy"]))
    minutes = {filters: f"{row['seconds'] / 60:.0f}" for filters, row in done.items()}
    check(
        page(),
        f"Recorded, after 5 epochs: {done[64]['errors']} errors, squared error {done[64]['autoencoder_loss']:.4f} "
        f"({minutes[64]} minutes). The article's weights: {errors} errors, {usual['val_autoencoder_loss']:.4f}.",
        f"Recorded, after 5 epochs: {done[8]['errors']} errors, squared error {done[8]['autoencoder_loss']:.4f} "
        f"({minutes[8]} minutes).",
    )
    check(
        page("docs/second_task.md"),
        f"The article's weights and filters have {errors} errors and a squared error of "
        f"{usual['val_autoencoder_loss']:.4f} after 5 epochs",
    )
