"""Today's network held against recordings of the author's program, on Keras 2.1.2 and TensorFlow 1.4.1.

    python -m tests.parity

prints how far they are apart, on Keras' present backend and device.
"""

import hashlib
from pathlib import Path

import keras
import numpy as np

from data import batches, load_data, output_shapes, preprocess
from experiments.authors_program.shared import set_known_weights
from experiments.steps import train_steps
from model import prepare_model
from train import compile_model

RECORDED = Path(__file__).with_name("keras212.npz")
RANDOM = Path(__file__).parent.parent / "outputs" / "reference" / "original" / "random.npz"
SEED, COURSE_SEED = 1, 0  # as in experiments/authors_program/masks.py
WEIGHTED = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "dense", "classification", "decoder", "autoencoder")
LOSSES = ("loss", "classification_loss", "autoencoder_loss")


def compiled(model):
    """The network, compiled, with the weights that both recordings began with."""
    set_known_weights([model.get_layer(name) for name in WEIGHTED])
    return compile_model(model)


def differences(model, recorded, before_step=lambda step: None):
    """Do what was recorded, five training steps among it; returns the largest absolute difference by key.

    And that of the losses of steps 1 to 3 alone.
    """
    train_set, (test_images, test_labels), _ = load_data()
    found = {}

    def outputs(moment):
        classification, autoencoder = model.predict_on_batch(preprocess(test_images[:32]))
        found[f"{moment}_classification"], found[f"{moment}_autoencoder"] = map(
            keras.ops.convert_to_numpy, (classification, autoencoder)
        )

    outputs("test")
    x, targets = next(batches(test_images[:32], test_labels[:32], 32, outputs=output_shapes(model)))
    measured = model.test_on_batch(x, targets, return_dict=True)
    found["test_losses"] = [measured[name] for name in LOSSES]
    steps = train_steps(model, *train_set, np.arange(160).reshape(5, 32), before_step)
    found["train_losses"] = [[measured[name] for name in LOSSES] for measured in steps]
    for name in WEIGHTED:
        kernel, found[f"bias_{name}"] = model.get_layer(name).get_weights()
        found[f"kernel_{name}"] = kernel.ravel()[::97]
        found[f"norm_{name}"] = [np.linalg.norm(array.astype(np.float64)) for array in (kernel, found[f"bias_{name}"])]
    outputs("after")
    apart = {key: np.abs(np.subtract(found[key], recorded[key])) for key in recorded if key in found}
    return {key: float(difference.max()) for key, difference in apart.items()}, float(apart["train_losses"][:3].max())


def dropouts_of(model):
    """The Dropout layers of a model, in their order."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def with_the_originals_masks():
    """The differences from what was recorded with Dropout at the author's rate, its masks given to today's network."""
    from experiments.authors_program import random_numbers  # here, for it needs TensorFlow

    model, recorded = prepare_model(), np.load(RANDOM, allow_pickle=False)
    next_masks, _ = random_numbers.take(model, SEED)
    hashes = iter(recorded["mask_sha256"].tolist())

    def before_step(step):
        assert [hashlib.sha256(np.packbits(mask)).hexdigest() for mask in next_masks().values()] == next(hashes)

    return differences(compiled(model), recorded, before_step)


def course(steps):
    """The losses (steps, 2) of a training with all that is random, from the seed and images that were recorded."""
    from experiments.authors_program import random_numbers

    train_set, _, _ = load_data()
    model = compile_model(prepare_model())
    next_masks, random = random_numbers.take(model, COURSE_SEED)
    chosen = random_numbers.shuffled(random, np.tile(np.load(RANDOM.with_name("images.npy"))[COURSE_SEED], 40))
    indices = chosen.reshape(-1, 32)[:steps]
    measured = train_steps(model, *train_set, indices, lambda step: next_masks())
    return np.array([[step[name] for name in LOSSES[1:]] for step in measured])


def without_dropout():
    """The differences from keras212.npz, which was recorded with Dropout rates at 0."""
    model = compiled(prepare_model())
    for layer in dropouts_of(model):
        layer.rate = 0.0
    return differences(model, np.load(RECORDED, allow_pickle=False))


if __name__ == "__main__":
    for what in (without_dropout, with_the_originals_masks):
        print(what.__name__)
        for key, value in what()[0].items():
            print(f"    {key:24}{value:.1e}")
