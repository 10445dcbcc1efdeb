"""The measures, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from evaluate import ARTICLE_ACCURACY, compute_metrics, report


def test_metrics_by_hand():
    """Four white images: two 7s, of which one is taken for a 1, and two 1s, right."""
    images, labels = np.zeros((4, 28, 28), np.uint8), np.array([7, 7, 1, 1])
    probabilities = np.zeros((4, 10), np.float32)
    probabilities[[0, 1, 2, 3], [7, 1, 1, 1]] = [0.5, 0.75, 1, 0.5]
    probabilities[1, 7] = 0.25
    reconstructions = np.ones((4, 28, 28, 1), np.float32)  # paper is 1
    reconstructions[0, :14] = 0.5  # half of one image off by a half
    found = compute_metrics(images, labels, {"classification": probabilities, "autoencoder": reconstructions})
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
    outputs = {"classification": probabilities, "autoencoder": np.ones((1, 28, 28, 1), np.float32)}
    found = compute_metrics(np.zeros((1, 28, 28), np.uint8), np.array([4]), outputs)
    assert found["classification_loss"] == pytest.approx(87.3, abs=0.1)


def test_the_article_is_named_where_its_figure_is_given():
    white = np.zeros((2, 28, 28), np.uint8)
    right = np.eye(10, dtype=np.float32)[[3, 4]]
    outputs = {"classification": right, "autoencoder": np.ones((2, 28, 28, 1))}
    found = {**compute_metrics(white, np.array([3, 4]), outputs), "epoch": 3, "data": "x.npz"}
    lines = report(found)
    assert not any("article" in line for line in lines)
    assert lines[0] == "Measured             after epoch 3, on 2 test images of x.npz"
    assert "The article's        99.33%" in report({**found, "article_accuracy": ARTICLE_ACCURACY})
