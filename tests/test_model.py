"""The network: layer by layer the article's, and number by number what the original program computes."""

from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest

from data import batches, output_shapes, preprocess
from model import prepare_model
from train import compile_model

# Name, type, output shape, parameters: the article's table.
LAYERS = [
    ("image", "InputLayer", (28, 28, 1), 0),
    ("conv1", "Conv2D", (28, 28, 64), 640),
    ("dropout1", "Dropout", (28, 28, 64), 0),
    ("conv2", "Conv2D", (28, 28, 64), 36_928),
    ("dropout2", "Dropout", (28, 28, 64), 0),
    ("conv3", "Conv2D", (28, 28, 64), 36_928),
    ("dropout3", "Dropout", (28, 28, 64), 0),
    ("pool1", "MaxPooling2D", (14, 14, 64), 0),
    ("conv4", "Conv2D", (14, 14, 64), 36_928),
    ("dropout4", "Dropout", (14, 14, 64), 0),
    ("conv5", "Conv2D", (14, 14, 64), 36_928),
    ("dropout5", "Dropout", (14, 14, 64), 0),
    ("conv6", "Conv2D", (14, 14, 64), 36_928),
    ("pool2", "MaxPooling2D", (7, 7, 64), 0),
    ("flatten", "Flatten", (3136,), 0),
    ("dense", "Dense", (1024,), 3_212_288),
    ("classification", "Dense", (10,), 10_250),
    ("upsampling1", "UpSampling2D", (14, 14, 64), 0),
    ("decoder", "Conv2D", (14, 14, 64), 36_928),
    ("upsampling2", "UpSampling2D", (28, 28, 64), 0),
    ("autoencoder", "Conv2D", (28, 28, 1), 577),
]
# What each layer stands on; the table alone does not say where the second head begins.
INPUTS = {name: previous[0] for previous, (name, *_) in pairwise(LAYERS)} | {"upsampling1": "pool2"}
ACTIVATIONS = {"classification": "softmax", "autoencoder": "sigmoid"}  # the others: relu
WEIGHTED = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "dense", "classification", "decoder", "autoencoder")
PARAMETERS = 3_445_323


def test_layers_are_the_articles():
    model = prepare_model()
    found = {
        layer.name: (type(layer).__name__, tuple(layer.output.shape[1:]), layer.count_params())
        for layer in model.layers
    }
    assert found == {name: tuple(rest) for name, *rest in LAYERS}
    assert model.count_params() == PARAMETERS
    assert model.output_names == ["classification", "autoencoder"]
    for name, below in INPUTS.items():
        assert model.get_layer(name).input is model.get_layer(below).output, name
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            assert layer.activation.__name__ == ACTIVATIONS.get(layer.name, "relu")
            assert type(layer.kernel_initializer).__name__ == "GlorotUniform"
            assert type(layer.bias_initializer).__name__ == "Zeros"
        if isinstance(layer, keras.layers.Conv2D):
            assert (layer.kernel_size, layer.strides, layer.padding) == ((3, 3), (1, 1), "same")
        if isinstance(layer, keras.layers.Dropout):
            assert layer.rate == 0.1
        if isinstance(layer, keras.layers.MaxPooling2D):
            assert (layer.pool_size, layer.strides, layer.padding) == ((2, 2), (2, 2), "valid")
        if isinstance(layer, keras.layers.UpSampling2D):
            assert (layer.size, layer.interpolation) == ((2, 2), "nearest")


def test_compiled_as_in_the_article():
    model = compile_model(prepare_model())
    config = model.optimizer.get_config()
    assert isinstance(model.optimizer, keras.optimizers.SGD)  # on PyTorch, Keras has a class of its own below it
    assert (config["momentum"], config["nesterov"]) == (0.9, True)
    assert config["learning_rate"] == pytest.approx(0.01)
    compiled = model.get_compile_config()
    assert compiled["loss"] == {"classification": "categorical_crossentropy", "autoencoder": "mean_squared_error"}
    assert compiled["loss_weights"] == {"classification": 0.9, "autoencoder": 0.1}


def known_weights(layer, random):
    """The weights that the recording began with: Glorot-uniform kernels from a NumPy generator, biases 0."""
    *window, units_in, units_out = layer.kernel.shape
    limit = np.sqrt(6 / (np.prod(window) * (units_in + units_out)))
    return [random.uniform(-limit, limit, layer.kernel.shape).astype("float32"), np.zeros(units_out, "float32")]


def test_computes_what_the_original_program_computes(mnist):
    """The recording is of the author's own code on Keras 2.1.2 and TensorFlow 1.4.1, Dropout rates at 0."""
    recorded = np.load(Path(__file__).with_name("keras212.npz"), allow_pickle=False)
    (train_images, train_labels), (test_images, test_labels) = mnist
    test_x = preprocess(test_images[:32])
    model = prepare_model()
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == 5 * [0.1]  # at 0 one too many or too strong would go unseen
    for layer in dropouts:
        layer.rate = 0.0
    random = np.random.RandomState(20180212)
    for name in WEIGHTED:
        model.get_layer(name).set_weights(known_weights(model.get_layer(name), random))
    compile_model(model)
    assert model.count_params() == recorded["count_params"]

    def close(found, key, tolerance):
        np.testing.assert_allclose(found, recorded[key], rtol=0, atol=tolerance, err_msg=key)

    def outputs():
        return [np.asarray(output) for output in model.predict_on_batch(test_x)]

    def losses(measured):
        return [measured[name] for name in ("loss", "classification_loss", "autoencoder_loss")]

    classification, autoencoder = outputs()
    close(classification, "test_classification", 1e-6)
    close(autoencoder, "test_autoencoder", 1e-6)

    x, targets = next(batches(test_images[:32], test_labels[:32], 32, outputs=output_shapes(model)))
    close(losses(model.test_on_batch(x, targets, return_dict=True)), "test_losses", 2e-5)

    steps = []
    for (x, targets), _ in zip(
        batches(train_images[:160], train_labels[:160], 32, outputs=output_shapes(model)), range(5)
    ):
        model.reset_metrics()
        steps.append(losses(model.train_on_batch(x, targets, return_dict=True)))
    close(steps, "train_losses", 2e-5)

    for name in WEIGHTED:
        kernel, bias = model.get_layer(name).get_weights()
        close(kernel.ravel()[::97], f"kernel_{name}", 1e-4)
        close(bias, f"bias_{name}", 1e-4)
        close([np.linalg.norm(kernel.astype("float64")), np.linalg.norm(bias.astype("float64"))], f"norm_{name}", 1e-4)
    classification, autoencoder = outputs()
    close(classification, "after_classification", 1e-4)
    close(autoencoder, "after_autoencoder", 1e-4)
