"""Training: does the network learn, and is a run a function of its seed?"""

import gc
import signal

import numpy as np
import pytest

import cli
from dropout import dropouts
from evaluate import evaluate
from run_folder import COLUMNS
from train import mean_over_images, new_model, train


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


def test_losses_are_means_over_the_images(mnist):
    """35 images are a batch of 32 and one of 3, 502 test images one of 500 and one of 2; each image counts once.

    The first 32 images are one and the same, so that the small batch is not like the large one.
    """
    (images, labels), (test_images, test_labels) = mnist
    train_set = np.concatenate((images[:1].repeat(32, axis=0), images[1:4])), np.r_[labels[:1].repeat(32), labels[1:4]]
    test_set = test_images[:502], test_labels[:502]
    model = new_model()
    model.optimizer.learning_rate = 0.0
    for layer in dropouts(model):
        layer.rate = 0.0
    row = train(model, train_set, test_set, epochs=1)[0]
    for prefix, (x, y) in (("", train_set), ("val_", test_set)):
        measured = evaluate(model, x, y)
        for name in ("classification_loss", "autoencoder_loss"):
            assert row[prefix + name] == pytest.approx(measured[name], abs=3e-6), prefix + name
        total = 0.9 * row[prefix + "classification_loss"] + 0.1 * row[prefix + "autoencoder_loss"]
        assert row[prefix + "loss"] == pytest.approx(total, rel=1e-6)


def test_mean_over_images_by_hand():
    """Batches of 4, 4 and 2 images with the losses 1, 2 and 6: 24 / 10 over the images, 3 over the batches."""
    after, before = {"classification_loss": 3.0, "loss": 7.0}, {"classification_loss": 1.5, "loss": 5.0}
    assert mean_over_images(after, before, 10, 4) == {"classification_loss": pytest.approx(2.4)}
    assert mean_over_images(after, before, 12, 4) == {"classification_loss": 3.0}
    assert mean_over_images(after, {}, 3, 4) == {}


def test_a_last_step_that_breaks_the_weights_is_noticed(mnist):
    """The loss of the only step is taken before its update, which is far too large."""
    (images, labels), _test_set = mnist
    small = images[:8], labels[:8]
    model = new_model()
    model.optimizer.learning_rate = 1e38
    calls = []
    with pytest.raises(FloatingPointError, match="in epoch 1"):
        train(model, small, small, epochs=1, batch_size=8, after_epoch=calls.append)
    assert not calls


def test_ctrl_c_that_a_library_turns_into_another_error_is_not_lost():
    cli.interrupts.append(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt) as stop, cli.interruptible():
            raise RuntimeError("something was interrupted")
        assert stop.value.args == (signal.SIGTERM,)
    finally:
        cli.interrupts.clear()
    with pytest.raises(RuntimeError, match="of its own"), cli.interruptible():
        raise RuntimeError("of its own")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_inside_a_finalizer_is_not_lost(mnist):
    """Python drops what is raised there; the next step raises it again."""

    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    (images, labels), _ = mnist
    small = images[:8], labels[:8]
    before = signal.signal(signal.SIGINT, cli.interrupt)
    try:
        Finalized()
        gc.collect()
        assert cli.interrupts == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt) as stop:
            train(new_model(), small, small, epochs=1)
        assert stop.value.args == (signal.SIGINT,)
    finally:
        signal.signal(signal.SIGINT, before)
        cli.interrupts.clear()


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
