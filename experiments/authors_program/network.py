"""The author's network, loaded from his own files in their own environment, and how it is measured.

Needs the environment of original.py. MNIST is read from data/mnist.npz, where keras.datasets would download it.
"""

import hashlib
import os
import random
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import backend
from keras.optimizers import SGD

from experiments.authors_program.shared import CUT

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUTPUT = os.path.join(ROOT, "outputs", "reference", "original")
SHA256 = {
    "data_gen.py": "e74cfadfbd7d61225b0151f3fd1e09ef58599af97ec1f4ea57a1357882d7fd48",
    "model.py": "759718685a3b58b0a681fd971b7755a865189905c2024f1fb6ee6e79540f121b",
    "train.py": "b596978e3032293acea2f28e2666a6bbe8de13bd88703165cc10ff7f3e094015",
}
MEASURED = ["errors", "classification_loss", "uncut_loss", "autoencoder_loss"]  # on the test images


class Gated(SGD):
    """The author's optimizer, but that no weight is updated before all gradients are there."""

    def get_gradients(self, loss, params):
        gradients = super().get_gradients(loss, params)
        with tf.control_dependencies(gradients):
            return [tf.identity(gradient) for gradient in gradients]


def load_author(folder, optimizer=SGD):
    """Check and import the author's files; returns his data, the network compiled as in his train.py, his ModelSave."""
    for name, expected in SHA256.items():
        with open(os.path.join(folder, "CNN_Autoencoder", name), "rb") as file:
            if hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest() != expected:
                sys.exit(f"{name} is not the author's file")
    sys.path.insert(0, folder)
    with np.load(os.path.join(ROOT, "data", "mnist.npz")) as file:
        parts = [(file["x_" + part], file["y_" + part]) for part in ("train", "test")]
    keras.datasets.mnist.load_data = lambda: parts
    from CNN_Autoencoder.data_gen import prepare_mnist_data
    from CNN_Autoencoder.model import ModelSave, prepare_model

    model = prepare_model()
    losses = {"classification": keras.losses.categorical_crossentropy, "autoencoder": keras.losses.mean_squared_error}
    weights = {"classification": 0.9, "autoencoder": 0.1}
    model.compile(optimizer(lr=0.01, momentum=0.9, nesterov=True), losses, loss_weights=weights)
    return prepare_mnist_data(), model, ModelSave


def set_up(seed, threads):
    """Seed Python, NumPy and TensorFlow, and set both numbers of threads."""
    random.seed(seed)
    np.random.seed(seed)
    tf.set_random_seed(seed)
    count = {"intra_op_parallelism_threads": threads, "inter_op_parallelism_threads": threads}
    backend.set_session(tf.Session(config=tf.ConfigProto(**count)))


def measure(model, x, targets):
    """Return MEASURED: the cross-entropy with probabilities cut off at 1e-7 as in Keras 2.1.2, and not."""
    labels, images = targets
    probabilities, drawings = model.predict(x, batch_size=500)
    of_truth = probabilities[np.arange(len(x)), labels.argmax(axis=1)].astype("float64")
    errors = int((probabilities.argmax(axis=1) != labels.argmax(axis=1)).sum())
    losses = [-np.log(of_truth.clip(least, 1 - least)).mean() for least in (CUT, np.finfo("float32").tiny)]
    return [errors, *losses, np.square(drawings - images).mean(dtype="float64")]
