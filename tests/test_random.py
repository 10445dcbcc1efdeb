"""Random numbers: another mask in every epoch, the same one for the same seed, and the 16-bit draws of Dropout."""

import random

import keras
import numpy as np
import pytest
from conftest import dropouts

from support.backend import reseed
from train import PRECISIONS, new_model, train


def mask(layer):
    """Which of 1,000 ones a Dropout layer lets through."""
    return keras.ops.convert_to_numpy(layer(np.ones((1, 1000), "float32"), training=True)) > 0


def test_masks_depend_on_seed_epoch_and_layer():
    model = new_model()
    first, second, *_ = dropouts(model)
    masks = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        reseed(model, seed, epoch)
        masks[seed, epoch] = mask(first)
        if keras.backend.backend() != "torch":  # where the layers draw one after the other from one generator
            assert not np.array_equal(mask(first), masks[seed, epoch])  # another in the next step
            assert not np.array_equal(mask(second), masks[seed, epoch])
        reseed(model, seed, epoch)
        assert np.array_equal(mask(first), masks[seed, epoch])
    assert not np.array_equal(masks[0, 0], masks[0, 1])
    assert not np.array_equal(masks[0, 0], masks[1, 0])


def test_training_draws_other_masks_in_every_epoch(mnist):
    """On copies of one image, with a learning rate of 0, nothing but the masks can change the loss."""
    (images, labels), _ = mnist
    same = images[:1].repeat(8, axis=0), labels[:1].repeat(8)
    model = new_model()
    model.optimizer.learning_rate = 0.0
    losses = train(model, same, same, epochs=3, batch_size=8).history["loss"]
    assert len({round(loss, 6) for loss in losses}) == 3
    assert train(model, same, same, epochs=3, batch_size=8).history["loss"] == losses
    assert train(model, same, same, epochs=3, batch_size=8, first_epoch=1).history["loss"] == losses[1:]
    assert train(model, same, same, epochs=1, batch_size=8, seed=1).history["loss"] != losses[:1]


def test_a_notebook_keeps_its_generators_and_its_policy(mnist):
    """Training draws nothing from Python's and NumPy's generators, and no later layer computes in 16 bits."""
    (images, labels), _test_set = mnist
    model = new_model(precision="mixed_bfloat16")
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    if keras.backend.backend() != "torch":
        train(model, (images[:8], labels[:8]), (images[:8], labels[:8]), epochs=2, batch_size=8)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert keras.config.dtype_policy().name == "float32"
    assert keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other backends keep Keras' own Dropout")
@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_dropout_with_16_bits(precision):
    import tensorflow as tf

    first, second, *_ = dropouts(new_model(precision=precision))
    for layer in (first, second):
        layer.seed_generator.state.assign([7, 0])
    x = tf.ones((100, 200, 201), precision.removeprefix("mixed_"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = first(x, training=True)
    kept = np.asarray(tf.cast(y, "float32")) > 0
    # Four standard deviations of 4 million draws are 0.0006; what bfloat16 can hold in place of 0.1 is 0.0016 away.
    assert (~kept).mean() == pytest.approx(0.1, abs=6e-4)
    assert np.unique(np.asarray(tf.cast(y, "float32"))[kept]) == pytest.approx(1 / 0.9, rel=1 / 256)
    assert np.array_equal(np.asarray(tf.cast(tape.gradient(y, x), "float32")) > 0, kept)
    assert y.dtype == x.dtype

    def mask(layer):
        return np.asarray(tf.cast(layer(x, training=True), "float32")) > 0

    assert np.array_equal(mask(second), kept)  # a function of the seed
    again = mask(first)  # and of the step: as independent as two draws
    assert (again & kept).mean() == pytest.approx(0.81, abs=1e-3)
    assert (kept[:, :, 1:] & kept[:, :, :-1]).mean() == pytest.approx(0.81, abs=1e-3)
    assert np.array_equal(first(x, training=False), x)


def test_the_order_of_the_images_depends_on_the_seed_that_train_is_given(mnist, monkeypatch):
    """Without Dropout and without learning, the loss of the first batch tells which images are in it."""
    monkeypatch.setattr("model.DROPOUT", 0)  # which also leaves nothing to reseed
    (images, labels), _ = mnist
    few = images[:16], labels[:16]
    model = new_model()
    model.optimizer.learning_rate = 0.0
    losses = {1: [], 2: []}
    for seed in (1, 2, 1):
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda step, logs, seed=seed: step or losses[seed].append(float(logs["loss"]))
        )
        train(model, few, few, epochs=1, batch_size=4, seed=seed, callbacks=[callback])
    assert losses[1][0] == losses[1][1] != losses[2][0]


def test_every_layer_that_draws_is_reseeded():
    noise = keras.layers.GaussianNoise(1.0)
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000), noise])
    drawn = []
    for epoch in (0, 0, 1):
        reseed(model, 5, epoch)
        drawn.append(keras.ops.convert_to_numpy(noise(np.zeros((1, 1000), "float32"), training=True)))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
