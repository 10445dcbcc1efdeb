"""The recorded result, outputs/reference: the network there does what metrics.json and the README say."""

import json

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
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
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


def test_readme_gives_the_recorded_numbers():
    readme = (ROOT / "README.md").read_text().replace(" %", "%")
    for name, folder in (("seed 0", REFERENCE), ("seed 0, `mixed_bfloat16`", MIXED)):
        assert "| {0} | {accuracy:.2%} | {errors} |".format(name, **metrics(folder)) in readme
    recorded = [metrics(folder) for folder in SEEDS]
    for key, form in (("accuracy", ".2%"), ("errors", ".0f")):
        values = [each[key] for each in recorded]
        assert f"| {sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}}) |" in readme


def test_readme_shows_the_recorded_benchmark():
    recorded = json.loads((REFERENCE / "throughput.json").read_text())
    summary = summarise(recorded["rounds"], recorded["flop_per_image"])
    assert {name: recorded[name] for name in summary} == summary
    assert "\n".join(table(summary)) in (ROOT / "README.md").read_text()
