"""What the two timing programs count and train; how long it takes is their own business."""

import os
import time

import numpy as np
import pytest
from conftest import dropouts

from benchmarks import step_time
from benchmarks.throughput import (
    CONTESTANTS,
    PREPARE,
    WARM_UP,
    pytorch,
    pytorch_network,
    report,
    summarise_rounds,
    time_contestant,
)
from data import batches, epoch_order, output_shapes
from experiments.steps import without_decoder
from train import new_model


@pytest.mark.parametrize("contestant", ["c", *(pytest.param(letter, marks=pytest.mark.slow) for letter in "abdef")])
def test_contestants_train(contestant):
    """Each changes every one of its weights, by little, in two steps of the same size."""
    if contestant in "def":
        pytest.importorskip("torch")
    train_on, weights = PREPARE[contestant]()
    before = weights()
    train_on(64)
    after = weights()
    assert sum(array.size for array in after) == 3_445_323
    for one, other in zip(before, after, strict=True):
        assert np.isfinite(other).all()
        assert not np.array_equal(one, other)
        assert np.abs(one - other).max() < 0.2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak memory this way")
def test_contestants_are_measured():
    measured = time_contestant("c", 64)
    assert measured["images"] == 64
    assert 64 / measured["images_per_second"] < 60  # seconds
    assert measured["peak_memory_mb"] > 60_000 * 28 * 28 / 1e6  # the images themselves


def test_ratios_are_taken_within_a_round():
    """A machine at half its speed in the second round leaves every ratio as it was."""
    speeds = {"a": 100, "b": 200, "c": 80, "d": 50, "e": 160, "f": 40}
    rounds = [
        {letter: {"images_per_second": speed / slow, "peak_memory_mb": 1000 + slow} for letter, speed in speeds.items()}
        for slow in (1, 2)
    ]
    summary = summarise_rounds(rounds)
    assert summary["ratios"]["a/c"] == {"median": 1.25, "least": 1.25, "greatest": 1.25}
    assert summary["ratios"]["b/a"]["median"] == 2
    one = summary["contestants"]["a"]
    assert one["images_per_second"] == {"median": 75, "least": 50, "greatest": 100}
    text = "\n".join(report(summary))
    assert all(name in text for name, _ in CONTESTANTS.values())
    assert "a/d  2.00 (2.00 to 2.00)" in text
    assert "f/d  0.80 (0.80 to 0.80)" in text


def test_the_classifier_alone_is_the_network_without_its_decoder(mnist):
    whole = new_model()
    alone = without_decoder(whole)
    images = mnist[1][0][:8, ..., np.newaxis] / np.float32(255)
    assert np.array_equal(alone.predict(images, verbose=0), whole.predict(images, verbose=0)[0])
    decoder = [whole.get_layer(name).count_params() for name in ("decoder", "autoencoder")]
    assert alone.count_params() == whole.count_params() - sum(decoder)


@pytest.mark.slow
def test_steps_are_timed_with_and_without_the_decoder():
    found = step_time.time_steps(rounds=1, steps=3)
    times = found["milliseconds_a_step"]
    assert {name: len(one) for name, one in times.items()} == {"with_decoder": 1, "without_decoder": 1}
    assert all(0 < one[0] < 60_000 for one in times.values())
    assert found["ratio"]["median"] == times["with_decoder"][0] / times["without_decoder"][0]


def test_the_ratio_of_a_step_is_with_to_without():
    found = step_time.ratio({"with_decoder": [12, 11, 30], "without_decoder": [10, 10, 20]})
    assert found == {"median": 1.2, "least": 1.1, "greatest": 1.5}


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak memory this way")
def test_the_warm_up_is_not_timed(monkeypatch):
    """Of a contestant that needs a second for what comes first, and hardly any time for the rest."""
    counts = []

    def train_on(count):
        time.sleep(0 if counts else 1)
        counts.append(count)

    monkeypatch.setitem(PREPARE, "c", lambda: (train_on, None))
    assert time_contestant("c", 640)["images_per_second"] > 2 * 640
    assert counts == [WARM_UP, 640]


def test_pytorch_trains_as_the_article(mnist):
    """Two steps on the weights of a Keras network give what Keras makes of them: losses, weights, Nesterov."""
    torch = pytest.importorskip("torch")
    network = pytorch_network().eval()  # without Dropout
    train_on, _ = pytorch(network)
    model = new_model()
    for layer in dropouts(model):
        layer.rate = 0.0
    copy_weights(model, network, torch)
    train_on(64)
    (images, labels), _ = mnist
    order = epoch_order(64, 0, 0)
    for x, targets in batches(images[:64], labels[:64], 32, order, output_shapes(model)):
        model.train_on_batch(x, targets)
    with torch.inference_mode():
        expected = model.get_layer("dense").get_weights()[1]
        assert np.allclose(network[1][1].bias.numpy(), expected, atol=1e-6)
        assert np.abs(expected).max() > 1e-4
        decoder = model.get_layer("autoencoder").get_weights()[0]
        found = network[2][-1].weight.numpy().transpose(2, 3, 1, 0)
        assert np.allclose(found, decoder, atol=1e-6)


def copy_weights(model, network, torch):
    """Give PyTorch's network the weights of Keras'; the dense layer's inputs are in another order there."""
    names = [f"conv{number}" for number in range(1, 7)], ["dense", "classification"], ["decoder", "autoencoder"]
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    for part, part_names in zip(network, names):
        for name, layer in zip(part_names, (layer for layer in part if isinstance(layer, kinds)), strict=True):
            kernel, bias = model.get_layer(name).get_weights()
            if name == "dense":
                kernel = kernel.reshape(7, 7, 64, -1).transpose(2, 0, 1, 3).reshape(3136, -1)
            kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
                layer.bias.copy_(torch.from_numpy(bias))
