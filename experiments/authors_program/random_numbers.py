"""The random numbers of the author's program: from its seed, today's NumPy and TensorFlow draw the very same ones.

NumPy's global generator gives a number to each kernel and each Dropout layer of Keras 2.1.2, in the order in which they
are made, and then shuffles the images. TensorFlow draws from that number and its own seed. Needs Keras on TensorFlow.
"""

import keras
import numpy as np
import tensorflow as tf

from experiments.authors_program.shared import glorot_limit

ORDER = [f"{kind}{n}" for n in range(1, 6) for kind in ("conv", "dropout")]  # in which the author makes them
ORDER += ["conv6", "dense", "classification", "decoder", "autoencoder"]


def take(model, seed, batch_size=32):
    """Give a network that has not been trained what the author's draws from a seed.

    Sets the initial weights. Returns a function that gives the Dropout layers their masks of the next step, which has
    to be called before each, and returns these, arrays bool by layer; and NumPy's generator as fit() finds it.
    """
    random, variables = np.random.RandomState(seed), {}
    with tf.Graph().as_default():
        tf.compat.v1.set_random_seed(seed)
        kernels, masks = {}, {}
        for name in ORDER:
            layer, number = model.get_layer(name), random.randint(10**7)
            if isinstance(layer, keras.layers.Dropout):
                shape = (batch_size, *layer.output.shape[1:])
                masks[name] = tf.floor(np.float32(1 - layer.rate) + tf.random.uniform(shape, seed=number))
            else:
                limit = glorot_limit(layer.kernel.shape)
                kernels[name] = tf.random.uniform(layer.kernel.shape, -limit, limit, seed=number)
        session = tf.compat.v1.Session()
        initial = session.run(kernels)
    for name, kernel in initial.items():
        model.get_layer(name).set_weights([kernel, np.zeros(kernel.shape[-1], "float32")])
    for name, mask in masks.items():
        layer = model.get_layer(name)
        variables[name] = tf.Variable(tf.zeros(mask.shape), trainable=False)

        def call(layer, inputs, training=False, mask=variables[name]):
            return inputs * mask * (1 / (1 - layer.rate)) if training else inputs

        layer.call = call.__get__(layer)

    def next_masks():
        drawn = session.run(masks)
        for name, mask in drawn.items():
            variables[name].assign(mask)
        return {name: mask.astype(bool) for name, mask in drawn.items()}

    return next_masks, random


def shuffled(random, indices):
    """Return indices (n,) in the order in which Keras 2.1.2's fit() takes them in its first epoch."""
    order = np.arange(len(indices))
    random.shuffle(order)
    return indices[order]
