"""The network's Dropout layers: their seeds, and quicker draws for the 16-bit policies."""

import numpy as np

from model import keras


def dropouts(model):
    """Return the Dropout layers of a model."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def seed_dropout(model, seed, epoch):
    """Make the Dropout masks of an epoch depend on (seed, epoch) alone, as the order of the images does."""
    layers = dropouts(model)
    *seeds, last = np.random.default_rng([seed, epoch, 1]).integers(2**31, size=len(layers) + 1)
    for layer, layer_seed in zip(layers, seeds):
        layer.seed_generator.state.assign([layer_seed, 0])
    if keras.backend.backend() == "torch":  # where Dropout draws from PyTorch's global generator
        keras.utils.set_random_seed(int(last))


def draw_16_bits(dropout):
    """Make a Dropout layer draw 16 random bits an element, on TensorFlow; it stays a stock layer wherever it is saved.

    Under the 16-bit policies TensorFlow draws 32 bits and keeps 7 or 10 of them, so that bfloat16
    makes 13/128 of a rate of 0.1, and the drawing takes a third of a training step.
    """
    import tensorflow as tf

    def call(inputs, training=False):
        if not training:
            return inputs
        seed = tf.cast(dropout.seed_generator.next() % tf.int32.max, tf.int32)
        count = tf.size(inputs)
        pairs = tf.random.stateless_uniform([(count + 1) // 2], seed, None, None, tf.uint32)
        bits = tf.reshape(tf.bitcast(pairs, tf.uint16), [-1])[:count]
        keep = tf.reshape(bits, tf.shape(inputs)) >= round(dropout.rate * 2**16)
        return inputs * (tf.cast(keep, inputs.dtype) * (1 / (1 - dropout.rate)))

    dropout.call = call
