"""Training: does the network learn, and is a run a function of its seed?"""

import numpy as np

from evaluate import evaluate
from train import HISTORY, new_model, train


def test_a_short_training_learns(mnist):
    """Two epochs over 2,400 digits lower both losses and classify unseen digits far above chance (10 %)."""
    (images, labels), (test_images, test_labels) = mnist
    train_set, test_set = (images[:2400], labels[:2400]), (test_images[:500], test_labels[:500])
    model = new_model()
    before = evaluate(model, *test_set)
    calls = []
    history = train(model, train_set, test_set, epochs=2, after_epoch=calls.append)
    after = evaluate(model, *test_set)

    assert after["classification_loss"] < 0.5 * before["classification_loss"]
    assert after["autoencoder_loss"] < 0.8 * before["autoencoder_loss"]
    assert after["accuracy"] > 0.7
    assert calls == history
    assert [tuple(row) for row in history] == [HISTORY, HISTORY]
    assert [row["epoch"] for row in history] == [1, 2]
    # What evaluate() measures is what Keras measured after the last epoch.
    assert after["accuracy"] == np.float32(history[-1]["val_classification_accuracy"]).round(6)
    assert abs(after["classification_loss"] - history[-1]["val_classification_loss"]) < 1e-5
    assert abs(after["autoencoder_loss"] - history[-1]["val_autoencoder_loss"]) < 1e-5
    total = 0.9 * after["classification_loss"] + 0.1 * after["autoencoder_loss"]
    assert abs(total - history[-1]["val_loss"]) < 1e-5


def trained_weights(mnist, seed):
    (images, labels), (test_images, test_labels) = mnist
    model = new_model(seed)
    train(model, (images[:100], labels[:100]), (test_images[:20], test_labels[:20]), epochs=2, seed=seed)
    return np.concatenate([weights.ravel() for weights in model.get_weights()])


def test_same_seed_same_weights_bit_for_bit(mnist):
    first, again, other = (trained_weights(mnist, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
