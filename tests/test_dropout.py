"""The Dropout layers: another mask in every epoch, the same one for the same seed, and the 16-bit draws."""

import keras
import numpy as np
import pytest

from dropout import dropouts
from train import PRECISIONS, new_model


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
