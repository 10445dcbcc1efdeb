"""The article's network: an encoder shared by two heads, a classifier and a decoder.

    model = prepare_model()
    model.summary()

In the comments of this project, [A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98,
and [R] its author's repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import contextlib

import keras
from keras import layers

from data import PREDICT_BATCH_SIZE, check_fit, keras_batches, preprocess

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

INPUT_SHAPE = (28, 28, 1)  # [A] height and width, both multiples of 4, and channels
CLASS_NUM = 10  # [A]
FILTERS = 64  # [A] in every convolution but the last
KERNEL_SIZE = (3, 3)  # [A]
DROPOUT = 0.1  # [A] the share of activations set to 0 while training
DENSE_UNITS = 1024  # [A]


@contextlib.contextmanager
def keras_settings(precision="float32"):
    """Within the block, which builds a network, trains it or runs it, a user's keras.json does not count.

    precision: the dtype policy of the layers that are built. What was set before is put back.
    """
    settings = {"dtype_policy": precision, "floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            setter = getattr(keras.config, f"set_{name}")
            stack.callback(setter, getattr(keras.config, name)())
            setter(value)
        yield


def conv(name):
    """Return a convolution as the article has them everywhere but at the end."""
    return layers.Conv2D(FILTERS, KERNEL_SIZE, padding="same", activation="relu", name=name)


def prepare_model(input_shape=INPUT_SHAPE, class_num=CLASS_NUM):
    """Build the network [A], not compiled, with Keras' default initialisers.

    Input: float32 (n, *input_shape). Outputs, in this order: `classification`, the probabilities (n, class_num),
    and `autoencoder`, the reconstruction, like the input, from 0 to 1. By default it has 3,445,323 parameters.
    The layers take Keras' present settings, the article's within keras_settings(); the outputs are always float32.
    """
    image = keras.Input(input_shape, dtype="float32", name="image")

    # The encoder, shared by both tasks: 28x28x1 to 7x7x64.
    x = conv("conv1")(image)
    x = layers.Dropout(DROPOUT, name="dropout1")(x)
    x = conv("conv2")(x)
    x = layers.Dropout(DROPOUT, name="dropout2")(x)
    x = conv("conv3")(x)
    x = layers.Dropout(DROPOUT, name="dropout3")(x)
    x = layers.MaxPooling2D((2, 2), strides=(2, 2), name="pool1")(x)
    x = conv("conv4")(x)
    x = layers.Dropout(DROPOUT, name="dropout4")(x)
    x = conv("conv5")(x)
    x = layers.Dropout(DROPOUT, name="dropout5")(x)
    x = conv("conv6")(x)
    encoding = layers.MaxPooling2D((2, 2), strides=(2, 2), name="pool2")(x)

    # Head 1, the classifier: which digit is it?
    x = layers.Flatten(name="flatten")(encoding)
    x = layers.Dense(DENSE_UNITS, activation="relu", name="dense")(x)
    classification = layers.Dense(class_num, activation="softmax", dtype="float32", name="classification")(x)

    # Head 2, the decoder: draw the input again.
    x = layers.UpSampling2D((2, 2), name="upsampling1")(encoding)
    x = conv("decoder")(x)
    x = layers.UpSampling2D((2, 2), name="upsampling2")(x)
    channels = input_shape[-1]
    autoencoder = layers.Conv2D(
        channels, KERNEL_SIZE, padding="same", activation="sigmoid", dtype="float32", name="autoencoder"
    )(x)

    return keras.Model(image, [classification, autoencoder], name="cnn_autoencoder")


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
        if isinstance(layer, layers.Dropout) and layer.compute_dtype != "float32":
            layer.call = call.__get__(layer)  # a method of this layer alone


def over_images(measured):
    """Return what Keras measured, a dict by name, with each metric named "mean" in the place of the loss beside it.

    That one is a mean over the images, see compile_model(). In the alphabet "_mean" comes after "_loss".
    """
    return {name.replace("_mean", "_loss"): value for name, value in sorted(measured.items())}


def predict(model, images):
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
