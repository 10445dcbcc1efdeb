"""How Keras is run here: its settings, batches for the present backend, random numbers, means over the images."""

import contextlib
import math

import keras
import numpy as np

from data import batches, make_targets, preprocess
from support.errors import InputError

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

PREDICT_BATCH_SIZE = 500  # where no weights change, any size gives the same result; a large one is quicker
MEAN = "mean"  # the name of a metric that is a loss as a mean over the images, see compile_model()


@contextlib.contextmanager
def keras_settings(precision="float32"):
    """Within the block, which builds a network, trains it or runs it, a user's keras.json does not count.

    Nor do the variables KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH. precision: the dtype policy of the layers that
    are built. What was set before is put back.
    """
    settings = {"dtype_policy": precision, "floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
    settings |= {"max_epochs": None, "max_steps_per_epoch": None}
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            setter = getattr(keras.config, f"set_{name}")
            stack.callback(setter, getattr(keras.config, name)())
            setter(value)
        yield


def output_shapes(model):
    """Return the shapes of a network's outputs, without the batch, by name and in their order."""
    return {name: tuple(shape[1:]) for name, shape in zip(model.output_names, model.output_shape)}


def check_fit(model, images, labels=None):
    """Raise InputError unless a network takes these images, and its outputs are what make_targets() makes of them."""
    x, takes = preprocess(images[:1]), tuple(model.input_shape[1:])
    if x.shape[1:] != takes:
        raise InputError(f"the network takes images of {takes}, and these are {x.shape[1:]}: it was trained on others")
    if labels is None:
        return
    outputs = output_shapes(model)
    class_num = outputs["classification"][-1]
    if labels.max() >= class_num:
        raise InputError(f"the network knows {class_num} classes, and these labels go up to {labels.max()}")
    targets = {name: target.shape[1:] for name, target in make_targets(x, labels[:1], class_num).items()}
    if targets != outputs:
        raise InputError(
            f"the network's outputs are {outputs}, and their targets in data.py {targets}: make them alike"
        )


def keras_batches(model, images, labels, batch_size, order=None):
    """Return the batches of an epoch as Keras' fit and predict take them on the present backend, and their number.

    labels: None for predict(). Raises InputError when the images or labels do not fit the model.
    """
    check_fit(model, images, labels)
    outputs = None if labels is None else output_shapes(model)
    steps = math.ceil(len(images) / batch_size)
    if keras.backend.backend() != "tensorflow":
        return batches(images, labels, batch_size, order, outputs), steps

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype),
        next(batches(images[:1], labels, 1, outputs=outputs)),
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: batches(images, labels, batch_size, order, outputs), output_signature=signature
    ).prefetch(2)
    # Given arrays or a PyDataset, Keras builds a tf.data pipeline with autotuning on. Whenever the iterator of
    # one is destroyed, TensorFlow (seen on 2.18 to 2.21) waits for the autotuner's thread to end its nap: for up
    # to a minute, every few epochs, with idle cores. A pipeline with autotuning off has no such thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options), steps


def run_network(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run the network on images as load_data() gives them; returns its outputs by name, arrays float32 (n, ...)."""
    with keras_settings():
        if len(images) <= PREDICT_BATCH_SIZE:  # a pipeline takes ten times as long as the network does for one image
            check_fit(model, images)
            x = keras.tree.pack_sequence_as(model.input, [preprocess(images)])  # in a list, if the network was loaded
            outputs = model.predict_on_batch(x)
        else:
            x, steps = keras_batches(model, images, None, PREDICT_BATCH_SIZE)
            outputs = model.predict(x, steps=steps, verbose=0)
    return dict(zip(model.output_names, keras.tree.flatten(outputs)))


def reseed(model, seed, epoch):
    """Make what the layers draw in an epoch, as Dropout does, depend on (seed, epoch) alone, like epoch_order()."""
    states = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    *seeds, last = np.random.default_rng([seed, epoch, 1]).integers(2**31, size=len(states) + 1)
    for state, state_seed in zip(states, seeds):
        state.assign([state_seed, 0])
    if keras.backend.backend() == "torch":  # where they are drawn from PyTorch's global generator
        keras.utils.set_random_seed(int(last))


def means_over_images(measured):
    """Return what Keras measured, a dict by name, with each metric called MEAN in the place of the loss beside it."""
    means = {name: value for name, value in measured.items() if name.endswith(f"_{MEAN}")}
    others = {name: value for name, value in measured.items() if name not in means}
    return others | {f"{name.removesuffix(MEAN)}loss": value for name, value in means.items()}


def draw_16_bits(model):
    """Make a model's Dropout layers draw 16 random bits an element, if on TensorFlow and under a 16-bit policy.

    There TensorFlow draws 32 bits and keeps 7 or 10 of them, so that bfloat16 makes 13/128 of a rate of 0.1,
    and the drawing takes a third of a training step. A saved layer stays a stock one.
    """

    def call(layer, inputs, training=False):
        if not training:
            return inputs
        seed = tf.cast(layer.seed_generator.next() % tf.int32.max, tf.int32)
        count = tf.size(inputs)
        words = tf.random.stateless_uniform([(count + 1) // 2], seed, None, None, tf.uint32)
        bits = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:count]
        keep = tf.reshape(bits, tf.shape(inputs)) >= round(layer.rate * 2**16)
        return inputs * (tf.cast(keep, inputs.dtype) * (1 / (1 - layer.rate)))

    for layer in model.layers if keras.backend.backend() == "tensorflow" else ():
        stock = type(layer) is keras.layers.Dropout and layer.noise_shape is None  # others draw in a way of their own
        if stock and layer.compute_dtype != "float32":
            layer.call = call.__get__(layer)  # a method of this layer alone
