"""The measures, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from evaluate import ARTICLE_ACCURACY, measure, report


def test_measure_by_hand():
    """Four white images: two 7s, of which one is taken for a 1, and two 1s, right."""
    images, labels = np.zeros((4, 28, 28), np.uint8), np.array([7, 7, 1, 1])
    probabilities = np.zeros((4, 10), np.float32)
    probabilities[[0, 1, 2, 3], [7, 1, 1, 1]] = [0.5, 0.75, 1, 0.5]
    probabilities[1, 7] = 0.25
    reconstructions = np.ones((4, 28, 28, 1), np.float32)  # paper is 1
    reconstructions[0, :14] = 0.5  # half of one image off by a half
    found = measure(images, labels, probabilities, reconstructions)
    assert found["accuracy"] == 0.75
    assert (found["errors"], found["images"]) == (1, 4)
    assert found["classification_loss"] == pytest.approx(-math.log(0.5 * 0.25 * 1 * 0.5) / 4, abs=1e-6)
    assert found["autoencoder_loss"] == pytest.approx(0.25 / 8, abs=1e-6)
    by_class = found["accuracy_of_class"]
    assert (by_class["7"], by_class["1"], by_class["0"]) == (0.5, 1, None)
    assert "article_accuracy" not in found


def test_a_probability_of_0_costs_87(mnist):
    probabilities = np.zeros((1, 10), np.float32)
    probabilities[0, 3] = 1
    found = measure(np.zeros((1, 28, 28), np.uint8), np.array([4]), probabilities, np.ones((1, 28, 28, 1), np.float32))
    assert found["classification_loss"] == pytest.approx(87.3, abs=0.1)


def test_the_article_is_named_beside_mnist_only(mnist):
    images, labels = mnist[1]
    right = np.eye(10, dtype=np.float32)[labels]
    found = measure(images, labels, right, np.zeros((10_000, 28, 28, 1), np.float32))
    assert found["article_accuracy"] == ARTICLE_ACCURACY
    assert set(found["accuracy_of_digit"].values()) == {1}
    for changed in ((images[:-1], labels[:-1]), (images[::-1], labels[::-1])):
        found = measure(*changed, np.eye(10, dtype=np.float32)[changed[1]], np.zeros((len(changed[1]), 28, 28, 1)))
        assert "article_accuracy" not in found
    lines = report({**found, "epoch": None, "data": "x.npz"})
    assert not any("digit" in line or "article" in line for line in lines)
    assert "an unknown epoch" in lines[0]
