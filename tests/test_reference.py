"""The recorded result, outputs/reference: the network there does what metrics.json says."""

import json

import numpy as np
import pytest
from conftest import REFERENCE, metrics

from data import preprocess
from evaluate import measure
from model import keras, load_model, predict
from run_folder import read_history
from train import BATCH_SIZE, EPOCHS, LEARNING_RATE, LOSS_WEIGHTS, MOMENTUM, SEED

SEEDS = [REFERENCE, *sorted((REFERENCE / "seeds").iterdir())]


def test_recorded_network_does_what_is_recorded(mnist, predicted):
    found, recorded = measure(*mnist[1], *predicted), metrics(REFERENCE)
    assert found["errors"] == pytest.approx(recorded["errors"], abs=1)
    assert found["classification_loss"] == pytest.approx(recorded["classification_loss"], abs=1e-4)
    assert found["autoencoder_loss"] == pytest.approx(recorded["autoencoder_loss"], abs=1e-4)


def test_the_grey_frame_comes_from_the_padding_of_the_last_convolution(mnist):
    """Paper at the edge is greyer than paper one pixel further in, and less so if the edge is repeated outside it."""
    images = mnist[1][0][:200]
    network = load_model(REFERENCE / "model.keras")
    before = keras.Model(network.input, network.get_layer("upsampling2").output).predict(preprocess(images), verbose=0)
    kernel, bias = network.get_layer("autoencoder").get_weights()
    paper = images == 0
    edge = np.ones((28, 28), bool)
    edge[1:-1, 1:-1] = False
    inside = ~edge
    inside[2:-2, 2:-2] = False

    def ink(mode):
        padded = np.pad(before, ((0, 0), (1, 1), (1, 1), (0, 0)), mode)
        valid = sum(padded[:, y : y + 28, x : x + 28] @ kernel[y, x] for y in range(3) for x in range(3))
        return 1 - 1 / (1 + np.exp(-(valid + bias)[..., 0]))

    zeros, repeated = ink("constant"), ink("edge")
    assert np.allclose(1 - zeros, predict(network, images)[1][..., 0], atol=1e-5)
    grey = [255 * found[paper & place].mean() for found, place in ((zeros, edge), (zeros, inside), (repeated, edge))]
    assert grey[0] > 3 * grey[1]
    assert grey[2] < 2 * grey[1]


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
