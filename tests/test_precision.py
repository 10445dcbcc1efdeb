"""--precision: 16 bits inside, float32 weights and outputs, and the same run when it is resumed."""

import json

import keras
import numpy as np
import pytest
from conftest import call

from dropout import dropouts
from model import load_model
from run_folder import restore, write_keras, write_model
from train import PRECISIONS, new_model, train

MIXED = PRECISIONS[1:]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_computed_in_what(precision):
    model = new_model(precision=precision)
    inside = precision.removeprefix("mixed_")
    for layer in model.layers:
        outputs = layer.name in ("image", "classification", "autoencoder")
        assert layer.compute_dtype == ("float32" if outputs else inside), layer.name
        assert {weight.dtype for weight in layer.weights} <= {"float32"}
    assert [tensor.dtype for tensor in model.outputs] == ["float32", "float32"]
    for weights, plain in zip(model.get_weights(), new_model().get_weights()):
        assert np.array_equal(weights, plain)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="each backend has its own fast path")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_xla_on_tensorflows_cpu(precision):
    """Keras decides it when it is asked: XLA where there is a GPU, the quicker way without it where there is none."""
    import tensorflow as tf

    assert new_model(precision=precision).jit_compile == bool(tf.config.list_physical_devices("GPU"))


def everything(model):
    return [*model.weights, *model.optimizer.variables]


@pytest.mark.parametrize("precision", MIXED)
def test_resumed_run_is_the_same_bit_for_bit(precision, mnist, tmp_path):
    """With the optimizer's state, and mixed_float16's loss scale, which the first steps may lower.

    Few images, for some processors are slow in float16: 64 of them took minutes, and these 8 half of one.
    """
    train_set, test_set = [(images[:8], labels[:8]) for images, labels in mnist]
    whole = new_model(precision=precision)
    history = train(whole, train_set, test_set, epochs=2, batch_size=4)

    begun = new_model(precision=precision)
    train(begun, train_set, test_set, epochs=1, batch_size=4)
    write_keras(tmp_path / "checkpoint.keras", begun, "a run", 1)
    resumed = new_model(precision=precision)
    assert restore(tmp_path / "checkpoint.keras", resumed, steps=2) == ("a run", 1)
    rest = train(resumed, train_set, test_set, epochs=2, batch_size=4, first_epoch=1)

    for row in (history[1], rest[0]):
        del row["seconds"]
    assert rest == history[1:]
    for one, other in zip(everything(whole), everything(resumed)):
        assert np.array_equal(one, other), one.path


def test_saved_network_computes_in_float32_and_is_made_of_stock_layers(mnist, tmp_path):
    model = new_model(precision="mixed_bfloat16")
    write_model(tmp_path / "model.keras", model, "a run", 1)
    saved, plain = load_model(tmp_path / "model.keras"), new_model()
    assert {layer.compute_dtype for layer in saved.layers} == {"float32"}
    assert [type(layer) for layer in dropouts(saved)] == 5 * [keras.layers.Dropout]
    x = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    for one, other in zip(saved.predict_on_batch(x), plain.predict_on_batch(x)):
        assert np.array_equal(one, other)
    checkpoint = tmp_path / "checkpoint.keras"
    write_keras(checkpoint, model, "a run", 1)
    for layer in dropouts(keras.saving.load_model(checkpoint, compile=False)):
        assert (type(layer), layer.rate, "call" in vars(layer)) == (keras.layers.Dropout, 0.1, False)


def test_precision_is_recorded_and_kept_by_resume(small_data, tmp_path):
    common = "--output-dir", tmp_path, "--data", small_data, "--limit", 32
    call("train.py", *common, "--epochs", 1, "--precision", "mixed_bfloat16")
    call("train.py", *common, "--epochs", 2, "--resume")
    assert json.loads((tmp_path / "settings.json").read_text())["precision"] == "mixed_bfloat16"
