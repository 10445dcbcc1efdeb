"""One run of the study, in a process of its own: a network trained and measured. second_task.py says which runs."""

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import support.quiet  # first: it loads Keras without TensorFlow's greeting

    support.quiet.need("experiments", "pandas", "scipy", "psutil", "distributed")

import keras
import numpy as np
import psutil
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

import train
from data import epoch_order, load_data, make_targets, preprocess
from evaluate import compute_metrics
from support import cli
from support.backend import keras_settings, reseed, run_network
from support.run_folder import environment, processor

BINS = 15  # of the calibration error, as in Guo, Pleiss, Sun & Weinberger 2017, https://arxiv.org/abs/1706.04599


def choose_images(run, labels):
    """Return indices of training images: each step's, (steps, 32 + unlabelled); those held out; and the steps an epoch.

    All images are in the orders that train() has. Few images are drawn for the seed and repeated, and all of that is
    one epoch. Images without labels, and those held out, are others.
    """
    seed, count, steps = run["seed"], run["images"], run["steps"]
    own, draw = np.arange(len(labels)), np.random.default_rng([seed, 2])
    if run.get("per_class"):
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        own = np.concatenate([draw.choice(each, count // len(classes), replace=False) for each in classes])
    elif count < len(labels):
        own = draw.choice(len(labels), count, replace=False)
    repeats = 1 if count == len(labels) else math.ceil(steps * train.BATCH_SIZE / count)
    steps_an_epoch = len(own) * repeats // train.BATCH_SIZE
    epochs = [epoch_order(len(own) * repeats, seed, epoch) for epoch in range(math.ceil(steps / steps_an_epoch))]
    labelled = np.tile(own, repeats)[np.concatenate(epochs)][: steps * train.BATCH_SIZE].reshape(steps, -1)
    others = np.random.default_rng([seed, 3]).permutation(np.setdiff1d(np.arange(len(labels)), own))
    held_out, others = np.split(others, [run.get("held_out", 0)])
    without_labels = np.resize(others, (steps, run["unlabelled"]))  # at their end, from their beginning again
    return np.hstack([labelled, without_labels]), held_out, steps_an_epoch


def without_decoder(network, weight):
    """Return a network's layers up to the classification, compiled like the whole."""
    alone = keras.Model(network.input, [network.get_layer("classification").output])
    optimizer = keras.optimizers.SGD(train.LEARNING_RATE, momentum=train.MOMENTUM, nesterov=True)
    alone.compile(optimizer, loss=["categorical_crossentropy"], loss_weights=[weight])
    return alone


def new_network(run):
    """Return a run's network, compiled. The classifier alone has no decoder, and draws the same random numbers."""
    weights = {"classification": run["classification_weight"], "autoencoder": run["autoencoder_weight"]}
    network = train.new_model(run["seed"], weights, filters=run["filters"])
    return network if run["autoencoder_weight"] else without_decoder(network, run["classification_weight"])


def losses(logits, labels):
    """Return -log p of the true class of each image (n,), from logits (n, classes) and labels (n,)."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def calibration_error(logits, labels):
    """Return the expected calibration error: how far the greatest probability is from the share of right answers.

    The images are sorted into BINS by that probability, and the mean is over the images.
    """
    greatest = softmax(logits, axis=1).max(axis=1)
    gaps = (logits.argmax(axis=1) == labels) - greatest
    bins = np.minimum((greatest * BINS).astype(int), BINS - 1)
    return np.abs(np.bincount(bins, gaps)).sum() / len(labels)


def calibrate(logits, labels, held_logits, held_labels):
    """Return how far probabilities can be trusted, as they are, and at a temperature fitted on images held out.

    Logits, (n, classes), are logarithms of the probabilities; a temperature divides them. true_probability: the mean
    probability of the true class. loss_when_wrong: the mean -log p of the true class where the answer is wrong.
    """

    def held_loss(logarithm):
        return losses(held_logits / np.exp(logarithm), held_labels).mean()

    temperature = np.exp(minimize_scalar(held_loss, bounds=(-3, 3), method="bounded").x)
    loss, wrong = losses(logits, labels), logits.argmax(axis=1) != labels
    return {
        "true_probability": np.exp(-loss).mean(),
        "loss_when_wrong": loss[wrong].mean() if wrong.any() else np.nan,
        "calibration_error": calibration_error(logits, labels),
        "temperature": temperature,
        "fitted_loss": losses(logits / temperature, labels).mean(),
        "fitted_error": calibration_error(logits / temperature, labels),
    }


def measure(network, test_set, held_out):
    """Return what compute_metrics() and, if images are held out, calibrate() make of a network's answers."""

    def logits(outputs):
        return np.log(outputs["classification"].clip(np.finfo(np.float32).tiny), dtype=np.float64)

    outputs = run_network(network, test_set[0])
    found = compute_metrics(*test_set, outputs)
    if len(held_out[0]):
        held_outputs = run_network(network, held_out[0])
        found |= calibrate(logits(outputs), test_set[1], logits(held_outputs), held_out[1])
    return found


def train_and_measure(run, train_set, test_set):
    """Do a run step by step; yields (steps, what was measured, seconds, network) where it measures."""
    images, labels = train_set
    network = new_network(run)
    class_num = network.get_layer("classification").units
    indices, held_out, steps_an_epoch = choose_images(run, labels)
    sample_weights = None
    if run["unlabelled"]:  # the loss is a mean over all images of a step; a label is to count as it does without them
        count = indices.shape[1]
        of_labels = np.float32([count / train.BATCH_SIZE] * train.BATCH_SIZE + [0] * run["unlabelled"])
        sample_weights = of_labels, np.ones((count, 1, 1), np.float32)
    started = time.perf_counter()
    for step in range(run["steps"] + 1):
        if step in run["measured_at"]:
            found = measure(network, test_set, (images[held_out], labels[held_out]))
            yield step, found, time.perf_counter() - started, network
        if step == run["steps"]:
            break
        if step % steps_an_epoch == 0:
            reseed(network, run["seed"], step // steps_an_epoch)
        x = preprocess(images[indices[step]])
        targets = make_targets(x, labels[indices[step]], class_num)
        with keras_settings():
            targets = tuple(targets[name] for name in network.output_names)
            loss = np.ravel(network.train_on_batch(x, targets, sample_weights))[0]
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in step {step + 1}")


def origin(threads):
    """Return what a row says of where it comes from."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    found = environment()
    device, machine = found.pop("device"), processor()
    if machine not in device:  # it computes on a GPU
        machine = f"{machine}, {device}"
    versions = ", ".join(f"{name} {value}" for name, value in found.items() if value)
    return {"commit": commit, "threads": threads, "machine": machine, "versions": versions}


def do(run, threads):
    """Do a run, on the project's data or the share of them that it names; returns its rows, one a measurement."""
    train_set, test_set, _ = load_data()
    of_train, of_test = run["share_of_data"]
    cut = [part[:of_train] for part in train_set], [part[:of_test] for part in test_set]
    rows, source = [], origin(threads)
    for steps, found, seconds, network in train_and_measure(run, *cut):
        numbers = {name: round(value, 6) for name, value in found.items() if isinstance(value, (int, float))}
        row = {**numbers, "test_images": numbers["images"], **run, "steps": steps, "seconds": round(seconds, 1)}
        hashed = hashlib.sha256(json.dumps(network.get_config()).encode()).hexdigest()
        rows.append({**row, "network_sha256": hashed, "weights_sha256": "", **source})
    weights = b"".join(array.tobytes() for array in network.get_weights())
    rows[-1]["weights_sha256"] = hashlib.sha256(weights).hexdigest()  # of the end, which is the last measurement
    return rows


def end_with(process):
    """End this process when another one is gone, the worker that started it."""
    while psutil.pid_exists(process):
        time.sleep(1)
    os._exit(1)


def main():
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    print(json.dumps(do(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    cli.start(main)
