"""The article's network: an encoder shared by two heads, a classifier and a decoder.

    model = prepare_model()
    model.summary()

[A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98.
"""

import contextlib
import hashlib
import json
import os
import tempfile

from data import CLASS_NUM, IMAGE_SHAPE, PREDICT_BATCH_SIZE, InputError, feed

INPUT_SHAPE = (*IMAGE_SHAPE, 1)
FILTERS = 64  # [A] in every convolution but the last
KERNEL_SIZE = (3, 3)  # [A]
DROPOUT = 0.1  # [A] the share of activations set to 0 while training
DENSE_UNITS = 1024  # [A]


@contextlib.contextmanager
def quiet_import():
    """Keep file descriptor 2 quiet, where TensorFlow greets; what it got is shown if the import fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no help against the greeting, but against what follows it
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except Exception as error:
            caught.seek(0)
            os.write(stderr, caught.read())
            raise ImportError(f"Keras does not load: {error}") from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with quiet_import():
    import keras


def prepare_model(input_shape=INPUT_SHAPE, class_num=CLASS_NUM, *, dtype=None):
    """Build the network [A], not compiled, with Keras' default initialisers.

    Input: float32 (n, 28, 28, 1). Outputs, in this order: `classification`, the probabilities
    (n, 10), and `autoencoder`, the reconstruction (n, 28, 28, 1), from 0 to 1. 3,445,323 parameters.
    dtype: the layers' dtype policy, by default Keras' global one; the outputs are float32 under each.
    """
    layers = keras.layers

    def conv(name):
        return layers.Conv2D(FILTERS, KERNEL_SIZE, padding="same", activation="relu", dtype=dtype, name=name)

    def dropout(name):
        return layers.Dropout(DROPOUT, dtype=dtype, name=name)

    def pool(name):
        return layers.MaxPooling2D((2, 2), strides=(2, 2), dtype=dtype, name=name)

    def upsample(name):
        return layers.UpSampling2D((2, 2), dtype=dtype, name=name)

    image = keras.Input(input_shape, name="image")

    # The encoder, shared by both tasks: 28x28x1 to 7x7x64.
    x = conv("conv1")(image)
    x = dropout("dropout1")(x)
    x = conv("conv2")(x)
    x = dropout("dropout2")(x)
    x = conv("conv3")(x)
    x = dropout("dropout3")(x)
    x = pool("pool1")(x)
    x = conv("conv4")(x)
    x = dropout("dropout4")(x)
    x = conv("conv5")(x)
    x = dropout("dropout5")(x)
    x = conv("conv6")(x)
    encoding = pool("pool2")(x)

    # Head 1, the classifier: which digit is it?
    x = layers.Flatten(dtype=dtype, name="flatten")(encoding)
    x = layers.Dense(DENSE_UNITS, activation="relu", dtype=dtype, name="dense")(x)
    classification = layers.Dense(class_num, activation="softmax", dtype="float32", name="classification")(x)

    # Head 2, the decoder: draw the input again.
    x = upsample("upsampling1")(encoding)
    x = conv("decoder")(x)
    x = upsample("upsampling2")(x)
    autoencoder = layers.Conv2D(
        1, KERNEL_SIZE, padding="same", activation="sigmoid", dtype="float32", name="autoencoder"
    )(x)

    model = keras.Model(image, [classification, autoencoder], name="cnn_autoencoder")
    if dtype:
        model.dtype_policy = dtype  # by which Keras decides whether to scale the loss
    return model


def describe_network(model):
    """Return how many parameters a model has, and the SHA-256 of its configuration: layers, sizes, rates and all."""
    config = json.dumps(model.get_config(), sort_keys=True, default=str)
    return {"parameters": model.count_params(), "sha256": hashlib.sha256(config.encode()).hexdigest()}


def load_model(path):
    """Load a network that train.py saved, not compiled, and check that its input and outputs are the article's.

    Raises InputError when there is no such file, when it is damaged or no Keras model, when it
    holds code (Keras' safe mode stays on), or when it is a network for something else.
    """
    if not path.exists():
        raise InputError(f"no trained network {path}: python train.py writes one")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        found = (
            {tensor.name: tensor.shape[1:] for tensor in model.inputs},
            getattr(model, "output_names", None),
            model.output_shape,
        )
    except Exception as error:  # a strange or damaged file can fail in a dozen ways
        raise InputError(f"{path}: not a readable Keras model ({error})") from None
    expected = {"image": INPUT_SHAPE}, ["classification", "autoencoder"], [(None, CLASS_NUM), (None, *INPUT_SHAPE)]
    if found != expected:
        raise InputError(f"{path}: not the article's network, its input or outputs are others")
    return model


def predict(model, images):
    """Run the network on uint8 images (n, 28, 28); returns probabilities (n, 10) and reconstructions (n, 28, 28, 1)."""
    x, steps = feed(images, None, PREDICT_BATCH_SIZE)
    return model.predict(x, steps=steps, verbose=0)
