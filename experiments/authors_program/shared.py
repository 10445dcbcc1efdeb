"""What both programs are measured by, and the weights that both are given. It runs in Python 3.6 and in today's."""

import numpy as np

CUT = 1e-7  # Keras 2.1.2 takes no logarithm of a smaller probability
BLIND = 0.0673  # the squared error of drawing the mean training image, whatever the image
LEFT = 5  # a batch's cross-entropy above it has left the path: chance is 2.3, dead is 12 to 16


def course(losses, drawings):
    """Return what a row says of a training, a dict, from the cross-entropy and the squared error of each batch.

    left_in: the first batch that left the path, above_5: how many did, at_the_end: the mean of the last ten. drew_in:
    after how many steps the mean of ten squared errors is below BLIND. "" where it never happens.
    """
    above = np.greater(losses, LEFT)
    better = np.convolve(drawings, np.full(10, 0.1), "valid") < BLIND
    return {
        "left_in": int(above.argmax()) + 1 if above.any() else "",
        "above_5": int(above.sum()),
        "at_the_end": np.mean(losses[-10:]),
        "drew_in": int(better.argmax()) + 10 if better.any() else "",
    }


def glorot_limit(shape):
    """Return the greatest value of Glorot's uniform distribution for a kernel of this shape."""
    window, units_in, units_out = shape[:-2], shape[-2], shape[-1]
    return np.sqrt(6 / (np.prod(window) * (units_in + units_out)))


def set_known_weights(layers):
    """Give layers the weights that keras212.npz began with: Glorot-uniform kernels of one generator, biases of 0."""
    random = np.random.RandomState(20180212)
    for layer in layers:
        shape = layer.get_weights()[0].shape
        limit = glorot_limit(shape)
        layer.set_weights([random.uniform(-limit, limit, shape).astype("float32"), np.zeros(shape[-1], "float32")])
