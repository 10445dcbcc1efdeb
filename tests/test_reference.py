"""The recorded result, outputs/reference: the network there does what metrics.json says."""

import json
import shutil

import keras
import numpy as np
import pytest
from conftest import REFERENCE, call, metrics

from data import DATA, preprocess
from evaluate import run_network
from support.data_file import data_entry
from support.resume import settings_of
from support.run_folder import RUN_FILES, load_network, read_history
from train import EPOCHS, new_model, parse_args

SEEDS = [REFERENCE, *sorted((REFERENCE / "seeds").iterdir())]


def test_recorded_network_does_what_is_recorded(tmp_path):
    """Measured where nothing else changes: a copy of the recorded folder, on the data that it was trained on."""
    for name in RUN_FILES:
        shutil.copy(REFERENCE / name, tmp_path)
    output = call("evaluate.py", "--output-dir", tmp_path)
    assert output.startswith("Measured             after epoch 20, on 10000 test images of mnist.npz\n")
    assert "The article's        99.33%" in output
    found, recorded = metrics(tmp_path), metrics(REFERENCE)
    assert found.keys() == recorded.keys()
    assert found["errors"] == pytest.approx(recorded["errors"], abs=1)
    assert found["classification_loss"] == pytest.approx(recorded["classification_loss"], abs=1e-4)
    assert found["autoencoder_loss"] == pytest.approx(recorded["autoencoder_loss"], abs=1e-4)


def test_the_grey_frame_comes_from_the_padding_of_the_last_convolution(mnist):
    """Paper at the edge is greyer than paper one pixel further in, and less so if the edge is repeated outside it."""
    images = mnist[1][0][:200]
    network, _ = load_network(REFERENCE)
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
    assert np.allclose(1 - zeros, run_network(network, images)["autoencoder"][..., 0], atol=1e-5)
    grey = [255 * found[paper & place].mean() for found, place in ((zeros, edge), (zeros, inside), (repeated, edge))]
    assert grey[0] > 3 * grey[1]
    assert grey[2] < 2 * grey[1]


def test_recorded_run_is_the_default_one():
    settings = json.loads((REFERENCE / "settings.json").read_text(encoding="utf-8"))
    settings.pop("starts")
    assert settings == {
        **settings_of(new_model(), parse_args([]), data_entry(DATA, DATA.read_bytes())),
        "backend": "tensorflow",
    }


@pytest.mark.parametrize("folder", SEEDS, ids=lambda folder: folder.name)
def test_recorded_metrics_are_of_the_end_of_the_recorded_training(folder):
    history, measured = read_history(folder, EPOCHS), metrics(folder)
    assert history[-1]["val_classification_accuracy"] == pytest.approx(measured["accuracy"], abs=1e-6)
    assert history[-1]["val_classification_loss"] == pytest.approx(measured["classification_loss"], abs=1e-5)
    assert history[-1]["val_autoencoder_loss"] == pytest.approx(measured["autoencoder_loss"], abs=1e-5)
