"""Training: does the network learn, and is a run a function of its seed?"""

import numpy as np

from evaluate import evaluate
from run_folder import COLUMNS
from train import new_model, train


def test_a_short_training_learns(mnist):
    """Two epochs over 1,600 digits lower both losses and classify unseen digits far above chance (10 %).

    The batches are of 8, not 32, for as many steps as 6,400 digits would take: the first hundred show little.
    """
    (images, labels), (test_images, test_labels) = mnist
    train_set, test_set = (images[:1600], labels[:1600]), (test_images[:400], test_labels[:400])
    model = new_model()
    before = evaluate(model, *test_set)
    calls = []
    history = train(model, train_set, test_set, epochs=2, batch_size=8, after_epoch=calls.append)
    after = evaluate(model, *test_set)

    assert after["classification_loss"] < 0.7 * before["classification_loss"]
    assert after["autoencoder_loss"] < 0.7 * before["autoencoder_loss"]
    assert after["accuracy"] > 0.5
    assert calls == history
    assert [tuple(row) for row in history] == [COLUMNS, COLUMNS]
    assert [row["epoch"] for row in history] == [1, 2]
    # What evaluate() measures is what Keras measured after the last epoch.
    assert after["accuracy"] == np.float32(history[-1]["val_classification_accuracy"]).round(6)
    assert abs(after["classification_loss"] - history[-1]["val_classification_loss"]) < 1e-5
    assert abs(after["autoencoder_loss"] - history[-1]["val_autoencoder_loss"]) < 1e-5
    total = 0.9 * after["classification_loss"] + 0.1 * after["autoencoder_loss"]
    assert abs(total - history[-1]["val_loss"]) < 1e-5


def flat(model):
    return np.concatenate([weights.ravel() for weights in model.get_weights()])


def test_same_seed_same_weights_bit_for_bit(mnist):
    (images, labels), (test_images, test_labels) = mnist
    ends = []
    for _ in range(2):
        model = new_model(seed=1)
        train(model, (images[:100], labels[:100]), (test_images[:20], test_labels[:20]), epochs=2, seed=1)
        ends.append(flat(model))
    assert np.array_equal(*ends)
    assert not np.array_equal(ends[0], flat(new_model(seed=1)))
    assert not np.array_equal(flat(new_model(seed=1)), flat(new_model(seed=2)))
