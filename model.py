"""The article's network: an encoder shared by two heads, a classifier and a decoder.

    model = prepare_model()
    model.summary()

In the comments of this project, [A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98,
and [R] its author's repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import keras
from keras import layers

INPUT_SHAPE = (28, 28, 1)  # [A] height and width, both multiples of 4, and channels
CLASS_NUM = 10  # [A]
FILTERS = 64  # [A] in every convolution but the last
KERNEL_SIZE = (3, 3)  # [A]
DROPOUT = 0.1  # [A] the share of activations set to 0 while training
DENSE_UNITS = 1024  # [A]


def prepare_model(
    input_shape: tuple[int, int, int] = INPUT_SHAPE, class_num: int = CLASS_NUM, filters: int = FILTERS
) -> keras.Model:
    """Build the network [A], not compiled, with Keras' default initialisers.

    Input: float32 (n, *input_shape). Outputs, in this order: `classification`, the probabilities (n, class_num),
    and `autoencoder`, the reconstruction, like the input, from 0 to 1. By default it has 3,445,323 parameters.
    The layers take Keras' present settings, the article's within keras_settings() of support/backend.py; the outputs
    are always float32.
    """

    def conv(name):
        return layers.Conv2D(filters, KERNEL_SIZE, padding="same", activation="relu", name=name)

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
