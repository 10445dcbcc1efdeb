"""What is random in the original, recorded: Dropout's masks, many draws of initial weights, a training's losses.

    old/bin/python -m experiments.authors_program.masks AUTHOR

Needs the environment of original.py. Writes outputs/reference/original/random.npz, for tests/parity.py: of the masks
their SHA-256 only, for today's TensorFlow draws the same masks (random_numbers.py).
"""

import hashlib
import os
import sys

import keras
import numpy as np
from keras import backend

from experiments.authors_program.network import OUTPUT, Gated, load_author, set_up
from experiments.authors_program.shared import set_known_weights

NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "dense", "classification", "decoder", "autoencoder")
SEED, STEPS, DRAWS = 1, 5, 20
COURSE_SEED, COURSE_STEPS = 0, 20


def weighted(model):
    """Return the layers with weights in NAMES' order: the encoder's, the classifier's, the decoder's."""
    convolutions = [layer for layer in model.layers if layer.name.startswith("conv2d")]
    dense = next(layer for layer in model.layers if layer.name.startswith("dense"))
    heads = model.get_layer("classification"), convolutions[6], model.get_layer("autoencoder")
    return [*convolutions[:6], dense, *heads]


def record_steps(folder):
    """Train five steps with Dropout at its own rate; returns masks, losses and weights, and outputs without Dropout."""
    set_up(SEED, 1)
    backend.set_learning_phase(1)
    ((x, y), (test_x, _)), model, _ = load_author(folder, Gated)
    set_known_weights(weighted(model))
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    scaled, masks = zip(*(layer.output.op.inputs for layer in dropouts))  # x / 0.9, and 1 or 0
    model._make_train_function()
    model.train_function.outputs += [*masks, dropouts[0].input, scaled[0]]
    losses, hashes, kept = [], [], []
    for step in range(STEPS):
        batch = slice(32 * step, 32 * step + 32)
        total, classification, autoencoder, *found, before, after = model.train_on_batch(
            x[batch], [part[batch] for part in y]
        )
        losses.append([total, classification, autoencoder])
        kept.append([mask.mean(dtype="float64") for mask in found])
        hashes.append([hashlib.sha256(np.packbits(mask.astype(bool)).tobytes()).hexdigest() for mask in found])
        assert np.array_equal(after, before / np.float32(0.9)), "scaled by another number"
    result = {"train_losses": losses, "kept": kept, "mask_sha256": hashes}
    result["mask_shapes"] = [mask.shape for mask in found]
    for name, layer in zip(NAMES, weighted(model)):
        kernel, result["bias_" + name] = layer.get_weights()
        result["kernel_" + name] = kernel.ravel()[::97]
        result["norm_" + name] = [np.linalg.norm(array.astype("float64")) for array in layer.get_weights()]
    backend.set_learning_phase(0)
    _, still, _ = load_author(folder, Gated)
    still.set_weights(model.get_weights())
    result["after_classification"], result["after_autoencoder"] = still.predict(test_x[:32])
    return result


def record_initial_weights(folder):
    """Build the network again and again; returns of each layer some kernel values, and greatest and variance of all."""
    draws = {name: [] for name in NAMES}
    for seed in range(DRAWS):
        backend.clear_session()
        set_up(100 + seed, 1)
        _, model, _ = load_author(folder)
        for name, layer in zip(NAMES, weighted(model)):
            kernel, bias = layer.get_weights()
            assert not bias.any()
            draws[name].append(kernel.ravel())
    result = {}
    for name in NAMES:
        values = np.concatenate(draws[name])
        result["initial_" + name] = values[:: len(values) // 1000][:1000]
        result["initial_of_all_" + name] = [np.abs(values).max(), values.var(dtype="float64"), len(values)]
    return result


def record_course(folder):
    """Begin a run of stage small, with all that is random in it; returns the losses of its first batches."""
    set_up(COURSE_SEED, 1)
    ((x, y), _), model, _ = load_author(folder, Gated)
    chosen, losses = np.tile(np.load(os.path.join(OUTPUT, "images.npy"))[COURSE_SEED], 40), []

    def note(_, logs):
        losses.append([logs["classification_loss"], logs["autoencoder_loss"]])
        if len(losses) == COURSE_STEPS:
            raise StopIteration

    watch = keras.callbacks.LambdaCallback(on_batch_end=note)
    try:
        model.fit(x[chosen], [part[chosen] for part in y], batch_size=32, epochs=1, verbose=0, callbacks=[watch])
    except StopIteration:
        return {"course": losses}


if __name__ == "__main__":
    found = record_initial_weights(sys.argv[1])
    backend.clear_session()
    found.update(record_steps(sys.argv[1]))
    backend.clear_session()
    found.update(record_course(sys.argv[1]))
    np.savez_compressed(os.path.join(OUTPUT, "random.npz"), **found)
