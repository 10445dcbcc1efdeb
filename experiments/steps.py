"""Training step by step, where an experiment looks between two steps; and the classifier alone."""

import keras

from data import make_targets, preprocess
from support.backend import keras_settings
from train import LEARNING_RATE, MOMENTUM


def train_steps(network, images, labels, indices, before_step=lambda step: None, sample_weights=None):
    """Train a compiled network; yields after each step what Keras measured of that step alone, a dict.

    indices: of the images, a row for each step. before_step: is called before each with its number, from 0.
    """
    class_num = network.get_layer("classification").units
    for step, chosen in enumerate(indices):
        before_step(step)
        x = preprocess(images[chosen])
        targets = make_targets(x, labels[chosen], class_num)
        with keras_settings():
            targets = tuple(targets[name] for name in network.output_names)
            measured = network.train_on_batch(x, targets, sample_weights, return_dict=True)
        yield measured


def without_decoder(network, weight=1.0, metrics=None):
    """Return a network's layers up to the classification, compiled like the whole. weight: of its loss."""
    alone = keras.Model(network.input, [network.get_layer("classification").output])
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    alone.compile(optimizer, loss=["categorical_crossentropy"], loss_weights=[weight], metrics=metrics)
    return alone
