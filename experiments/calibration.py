"""How far a classifier's probabilities can be trusted, as they are and at a temperature fitted on other images."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

BINS = 15  # as Guo, Pleiss, Sun & Weinberger 2017 have them, https://arxiv.org/abs/1706.04599
SMALLEST = np.finfo(np.float32).tiny  # as evaluate.py has it


def losses(probabilities, labels):
    """Return -log p of the true class of each image (n,), from probabilities (n, classes) and labels (n,)."""
    return -np.log(probabilities[np.arange(len(labels)), labels].clip(SMALLEST), dtype=np.float64)


def at_temperature(probabilities, temperature):
    """Return the probabilities with their logarithms divided by a temperature: above 1, all come nearer each other."""
    return softmax(np.log(probabilities.clip(SMALLEST), dtype=np.float64) / temperature, axis=1)


def calibration_error(probabilities, labels):
    """Return the expected calibration error: how far the greatest probability is from the share of right answers.

    The images are sorted into BINS by that probability, and the mean is over the images.
    """
    greatest = probabilities.max(axis=1).astype(float)
    gaps = (probabilities.argmax(axis=1) == labels) - greatest
    bins = np.minimum((greatest * BINS).astype(int), BINS - 1)
    return np.abs(np.bincount(bins, gaps)).sum() / len(labels)


def calibrate(probabilities, labels, held_probabilities, held_labels):
    """Return a dict of measures of test probabilities; the temperature is fitted on images that were held out.

    true_probability: the mean probability of the true class. loss_when_wrong: the mean -log p of the true class where
    the answer is wrong. fitted_loss, fitted_error: cross-entropy and calibration error at the temperature.
    """

    def held_loss(logarithm):
        return losses(at_temperature(held_probabilities, np.exp(logarithm)), held_labels).mean()

    temperature = np.exp(minimize_scalar(held_loss, bounds=(-3, 3), method="bounded").x)
    fitted = at_temperature(probabilities, temperature)
    loss, wrong = losses(probabilities, labels), probabilities.argmax(axis=1) != labels
    return {
        "true_probability": np.exp(-loss).mean(),
        "loss_when_wrong": loss[wrong].mean() if wrong.any() else np.nan,
        "calibration_error": calibration_error(probabilities, labels),
        "temperature": temperature,
        "fitted_loss": losses(fitted, labels).mean(),
        "fitted_error": calibration_error(fitted, labels),
    }
