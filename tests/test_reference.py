"""The recorded result, outputs/reference: the network there does what metrics.json and the README say."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.throughput import summarise, table
from evaluate import measure
from model import load_model, predict
from run_folder import read_history
from train import BATCH_SIZE, EPOCHS, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, SEED

REFERENCE = ROOT / "outputs" / "reference"
SEEDS = [REFERENCE, *sorted((REFERENCE / "seeds").iterdir())]
MIXED = REFERENCE / "mixed_bfloat16"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def predicted(mnist):
    """What the recorded network makes of the test images: probabilities and reconstructions."""
    return predict(load_model(REFERENCE / "model.keras"), mnist[1][0])


def test_recorded_network_does_what_is_recorded(mnist, predicted):
    found, recorded = measure(*mnist[1], *predicted), metrics(REFERENCE)
    assert found["errors"] == pytest.approx(recorded["errors"], abs=1)
    assert found["classification_loss"] == pytest.approx(recorded["classification_loss"], abs=1e-4)
    assert found["autoencoder_loss"] == pytest.approx(recorded["autoencoder_loss"], abs=1e-4)


def test_readme_says_what_a_low_probability_means(mnist, predicted):
    probability, wrong = predicted[0].max(axis=1), predicted[0].argmax(axis=1) != mnist[1][1]
    text = page()
    low, high = probability < 0.9, probability >= 0.98
    for sentence in (
        f"Over all {wrong.sum()} errors the median probability is {np.median(probability[wrong]):.2f}.",
        f"{(wrong & ~high).sum()} of the {wrong.sum()} lie below 0.98,",
        f"but only {100 * (~high[~wrong]).mean():.1f} % of the right answers do.",
        f"Below 0.90 half of the answers are wrong ({low.sum()} images); "
        f"from 0.98 up it is {100 * wrong[high].mean():.2f} % ({high.sum():,} images).",
    ):
        assert sentence in text, sentence
    assert wrong[low].mean() == pytest.approx(0.5, abs=0.02)
    assert np.sort(probability[wrong])[-24] > 0.98


def test_recorded_run_is_the_default_one():
    settings = json.loads((REFERENCE / "settings.json").read_text())
    expected = {
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "seed": SEED,
        "limit": None,
        "loss_weights": list(LOSS_WEIGHTS),
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "nesterov": True,
        "data": "mnist.npz",
        "backend": "tensorflow",
    }
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize("folder", SEEDS, ids=lambda folder: folder.name)
def test_recorded_metrics_are_of_the_end_of_the_recorded_training(folder):
    history, measured = read_history(folder / "history.csv", EPOCHS), metrics(folder)
    assert history[-1]["val_classification_accuracy"] == pytest.approx(measured["accuracy"], abs=1e-6)
    assert history[-1]["val_classification_loss"] == pytest.approx(measured["classification_loss"], abs=1e-5)
    assert history[-1]["val_autoencoder_loss"] == pytest.approx(measured["autoencoder_loss"], abs=1e-5)


def page(name="README.md"):
    """A page of the project as one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_readme_gives_the_recorded_numbers():
    readme = page().replace(" %", "%")
    assert "| seed 0 | {accuracy:.2%} | {errors} |".format(**metrics(REFERENCE)) in readme
    recorded = [metrics(folder) for folder in SEEDS]
    for key, form in (("accuracy", ".2%"), ("errors", ".0f")):
        values = [each[key] for each in recorded]
        assert f"| {sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}}) |" in readme
    histories = [read_history(folder / "history.csv") for folder in SEEDS]
    late = [row["val_classification_accuracy"] for history in histories for row in history[10:]]
    assert f"moves between {min(late):.2%} and {max(late):.2%}. It is {sum(late) / len(late):.2%} on average" in readme
    assert min(late) < 0.9933 < max(late)
    lowest = min(histories[0], key=lambda row: row["val_classification_loss"])
    last = histories[0][-1]["val_classification_loss"]
    sentence = "lowest after epoch {0:.0f}, at {1:.3f}. Then it rises again, to {2:.3f}"
    assert sentence.format(lowest["epoch"], lowest["val_classification_loss"], last) in readme
    assert histories[0][-1]["val_autoencoder_loss"] < lowest["val_autoencoder_loss"]
    minutes = [sum(row["seconds"] for row in history) / 60 for history in histories]
    assert f"takes {min(minutes):.0f} to {max(minutes):.0f} minutes on two cores" in readme
    first = [history[0]["val_classification_accuracy"] for history in histories]
    assert f"about {sum(first) / len(first):.1%}, after some" in readme


def test_the_page_on_speed_shows_the_recorded_benchmark():
    recorded = json.loads((REFERENCE / "throughput.json").read_text())
    summary = summarise(recorded["rounds"], recorded["flop_per_image"])
    assert {name: recorded[name] for name in summary} == summary
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "\n".join(table(summary)) in text
    one = metrics(MIXED)
    sentence = "in `mixed_bfloat16` ended at {accuracy:.2%}, {errors} errors; in `float32` at {0:.2%}, {1} errors"
    text = page("docs/speed.md").replace(" %", "%")
    assert sentence.format(metrics(REFERENCE)["accuracy"], metrics(REFERENCE)["errors"], **one) in text


@pytest.mark.parametrize("name", [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").iterdir())])
def test_links_and_pictures_are_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_both_pages_say_the_same():
    """The Japanese page has the code, the pictures and the figures of the English one, in the same order."""
    english, japanese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))
    assert "(README.ja.md)" in english.split("##")[0]
    assert "(README.md)" in japanese.split("##")[0]
    for pattern in (r"```.*?```", r"\]\(([^)]+\.(?:png|md))\)", r"`[^`\n]+`", r"\d[\d,.]*\d ?%|\b0\.\d+|\d,\d{3}"):
        found = [re.findall(pattern, text, re.DOTALL) for text in (english, japanese)]
        found = [[item for item in items if item not in ("README.md", "README.ja.md")] for items in found]
        assert found[0]
        assert set(found[0]) == set(found[1]), pattern
