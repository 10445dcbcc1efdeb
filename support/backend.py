"""How Keras is run here: its settings, batches for the present backend, random numbers."""

import contextlib

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


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


class Batches(keras.utils.PyDataset):
    """Batches in their order, and from the first on when the first is asked for again: a generator has but one pass."""

    def __init__(self, make_batches, count):
        super().__init__()
        self.make_batches, self.count = make_batches, count

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        if index == 0:
            self.batches = self.make_batches()
        return next(self.batches)


def feed(make_batches, count=None):
    """Return batches as Keras' fit, evaluate and predict take them on the present backend.

    make_batches: a function that returns an iterator over batches, tuples of arrays; over `count`, or without end.
    """
    if keras.backend.backend() != "tensorflow":
        return Batches(make_batches, count)

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), next(make_batches())
    )
    dataset = tf.data.Dataset.from_generator(make_batches, output_signature=signature).prefetch(2)
    # Given arrays or a PyDataset, Keras builds a tf.data pipeline with autotuning on. When the iterator of one is
    # destroyed, TensorFlow (seen on 2.18 to 2.21) waits for the autotuner's thread to end its nap: for up to a minute,
    # with idle cores. A pipeline with autotuning off has no such thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def reseed(model, seed, epoch):
    """Make what the layers draw in an epoch, as Dropout does, depend on (seed, epoch) alone, like epoch_order()."""
    states = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    *seeds, last = np.random.default_rng([seed, epoch, 1]).integers(2**31, size=len(states) + 1)
    for state, state_seed in zip(states, seeds):
        state.assign([state_seed, 0])
    if keras.backend.backend() == "torch":  # where they are drawn from PyTorch's global generator
        keras.utils.set_random_seed(int(last))


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
