"""Today's network held against recordings of the author's program, on Keras 2.1.2 and TensorFlow 1.4.1.

    python -m tests.parity

prints how far they are apart, on Keras' present backend and device.
"""

import hashlib
from pathlib import Path

import keras
import numpy as np

from data import batches, load_data, preprocess
from model import prepare_model
from support.backend import output_shapes
from train import compile_model

RECORDED = Path(__file__).with_name("keras212.npz")
RANDOM = Path(__file__).parent.parent / "outputs" / "reference" / "original" / "random.npz"
WEIGHTED = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "dense", "classification", "decoder", "autoencoder")


def known_weights(layer, random):
    """The weights that the recording began with: Glorot-uniform kernels from a NumPy generator, biases 0."""
    *window, units_in, units_out = layer.kernel.shape
    limit = np.sqrt(6 / (np.prod(window) * (units_in + units_out)))
    return [random.uniform(-limit, limit, layer.kernel.shape).astype("float32"), np.zeros(units_out, "float32")]


def new_network():
    """The compiled network with the weights that both recordings began with."""
    model = prepare_model()
    random = np.random.RandomState(20180212)
    for name in WEIGHTED:
        model.get_layer(name).set_weights(known_weights(model.get_layer(name), random))
    return compile_model(model)


def differences(model, recorded, masks=None):
    """Do what was recorded, five training steps among it; returns the largest absolute difference by key.

    masks: by step, those that the model's Dropout layers are to take, see take_masks().
    """
    (train_images, train_labels), (test_images, test_labels), _ = load_data()
    found = {}

    def outputs(moment):
        classification, autoencoder = model.predict_on_batch(preprocess(test_images[:32]))
        found[f"{moment}_classification"], found[f"{moment}_autoencoder"] = map(
            keras.ops.convert_to_numpy, (classification, autoencoder)
        )

    def losses(measured):
        return [measured[name] for name in ("loss", "classification_loss", "autoencoder_loss")]

    outputs("test")
    x, targets = next(batches(test_images[:32], test_labels[:32], 32, outputs=output_shapes(model)))
    found["test_losses"] = losses(model.test_on_batch(x, targets, return_dict=True))
    found["train_losses"] = []
    for step, (x, targets) in enumerate(
        batches(train_images[:160], train_labels[:160], 32, outputs=output_shapes(model))
    ):
        if masks:
            take_masks(model, masks[step])
        model.reset_metrics()
        found["train_losses"].append(losses(model.train_on_batch(x, targets, return_dict=True)))
    for name in WEIGHTED:
        kernel, found[f"bias_{name}"] = model.get_layer(name).get_weights()
        found[f"kernel_{name}"] = kernel.ravel()[::97]
        found[f"norm_{name}"] = [np.linalg.norm(array.astype(np.float64)) for array in (kernel, found[f"bias_{name}"])]
    outputs("after")
    return {key: float(np.abs(np.subtract(found[key], recorded[key])).max()) for key in recorded if key in found}


def dropouts_of(model):
    """The Dropout layers of a model, in their order."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def take_masks(model, masks):
    """Let each Dropout layer, while training, take a mask in the place of drawing one, scaled as Dropout does."""
    for layer, mask in zip(dropouts_of(model), masks, strict=True):

        def call(layer, inputs, training=False, mask=mask):
            return inputs * mask.astype("float32") * (1 / (1 - layer.rate)) if training else inputs

        layer.call = call.__get__(layer)


def drawn_masks(recorded):
    """The masks that TensorFlow 1.4.1 drew: today's draws the same from the same seeds, as their SHA-256 shows."""
    import tensorflow as tf

    by_layer = []
    for (seed, seed2), shape in zip(recorded["mask_seeds"], recorded["mask_shapes"]):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            uniform = tf.raw_ops.RandomUniform(shape=shape, dtype=tf.float32, seed=seed, seed2=seed2)
            mask = tf.floor(np.float32(0.9) + uniform)
            by_layer.append([session.run(mask).astype(bool) for _ in recorded["train_losses"]])
    by_step = list(zip(*by_layer))
    for masks, hashes in zip(by_step, recorded["mask_sha256"], strict=True):
        assert [hashlib.sha256(np.packbits(mask).tobytes()).hexdigest() for mask in masks] == hashes.tolist()
    return by_step


def with_the_originals_masks():
    """The differences from what was recorded with Dropout at the author's rate, its masks fed to today's network."""
    model, recorded = new_network(), np.load(RANDOM, allow_pickle=False)
    model.run_eagerly = True  # or a mask would be part of the traced step
    return differences(model, recorded, drawn_masks(recorded))


def without_dropout():
    """The differences from keras212.npz, which was recorded with Dropout rates at 0."""
    model = new_network()
    for layer in dropouts_of(model):
        layer.rate = 0.0
    return differences(model, np.load(RECORDED, allow_pickle=False))


if __name__ == "__main__":
    for what in (without_dropout, with_the_originals_masks):
        print(what.__name__)
        for key, value in what().items():
            print(f"    {key:24}{value:.1e}")
