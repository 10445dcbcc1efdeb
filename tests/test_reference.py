"""The recorded result, outputs/reference: the network there does what metrics.json and the README say."""

import json

import pytest
from conftest import ROOT

from benchmarks.throughput import summarise, table
from evaluate import evaluate
from model import load_model
from run_folder import read_history
from train import BATCH_SIZE, EPOCHS, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, SEED

REFERENCE = ROOT / "outputs" / "reference"
SEEDS = [REFERENCE, *sorted((REFERENCE / "seeds").iterdir())]
MIXED = REFERENCE / "mixed_bfloat16"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_recorded_network_does_what_is_recorded(mnist):
    found, recorded = evaluate(load_model(REFERENCE / "model.keras"), *mnist[1]), metrics(REFERENCE)
    assert found["errors"] == pytest.approx(recorded["errors"], abs=1)
    assert found["classification_loss"] == pytest.approx(recorded["classification_loss"], abs=1e-4)
    assert found["autoencoder_loss"] == pytest.approx(recorded["autoencoder_loss"], abs=1e-4)


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
