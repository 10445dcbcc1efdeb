"""--precision: 16 bits inside, float32 weights and outputs, and the same run when it is resumed."""

import json

import keras
import numpy as np
import pytest
from conftest import call, dropouts, rows_of

from support.record import save_epoch
from support.resume import restore
from support.run_folder import MODEL, load_network
from train import PRECISIONS, new_model, train

SETTINGS = {  # of a run, as far as its network says them
    **{"batch_size": 4, "seed": 0, "limit": None, "loss_weights": [0.9, 0.1], "precision": "", "data_sha256": ""}
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_computed_in_what(precision):
    model = new_model(precision=precision)
    inside = precision.removeprefix("mixed_")
    for layer in model.layers:
        whole = layer.name in ("image", "classification", "autoencoder")
        assert layer.output.dtype == ("float32" if whole else inside), layer.name
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


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_resumed_run_is_the_same_bit_for_bit(precision, mnist, tmp_path):
    """With the optimizer's state, and mixed_float16's loss scale, which the first steps may lower.

    Few images, for some processors are slow in float16: 64 of them took minutes, and these 8 half of one.
    """
    train_set, test_set = [(images[:8], labels[:8]) for images, labels in mnist]
    whole = new_model(precision=precision)
    history = rows_of(train(whole, train_set, test_set, epochs=2, batch_size=4))

    begun = new_model(precision=precision)
    save_epoch(tmp_path, begun, SETTINGS, rows_of(train(begun, train_set, test_set, epochs=1, batch_size=4)))
    resumed = new_model(precision=precision)
    assert restore(tmp_path, resumed, SETTINGS) == 1
    rest = rows_of(train(resumed, train_set, test_set, epochs=2, batch_size=4, first_epoch=1))

    assert rest == history[1:]
    for expected, variable in zip(everything(whole), everything(resumed)):
        assert np.array_equal(expected, variable), expected.path


@pytest.mark.parametrize(  # not mixed_float16, whose loss scale Keras 3.15 does not load alone
    "precision", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_saved_network_is_keras_own_and_is_measured_in_float32(precision, mnist, tmp_path):
    """keras.saving.load_model() alone gives the network and the optimizer; load_network() what is measured."""
    model = new_model(precision=precision)
    train_set, test_set = [(images[:4], labels[:4]) for images, labels in mnist]
    save_epoch(tmp_path, model, SETTINGS, rows_of(train(model, train_set, test_set, epochs=1, batch_size=4)))

    saved = keras.saving.load_model(tmp_path / MODEL)
    for expected, variable in zip(everything(model), everything(saved), strict=True):
        assert np.array_equal(expected, variable), expected.path
    for layer in dropouts(saved):
        assert (type(layer), layer.rate, "call" in vars(layer)) == (keras.layers.Dropout, 0.1, False)

    network, stamp = load_network(tmp_path)
    assert stamp.items() >= {"epoch": 1, **SETTINGS}.items()
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    plain = new_model()
    plain.set_weights(model.get_weights())
    x = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    for expected, output in zip(plain.predict_on_batch(x), network.predict_on_batch(x)):
        assert np.array_equal(expected, output)


@pytest.mark.slow
def test_precision_is_recorded_and_kept_by_resume(small_data, tmp_path):
    with np.load(small_data) as file:
        np.savez(
            tmp_path / "few.npz", **{name: array[:8] for name, array in file.items()}, class_names=list("0123456789")
        )
    common = "--output-dir", tmp_path, "--data", tmp_path / "few.npz"
    call("train.py", *common, "--epochs", 1, "--precision", "mixed_bfloat16")
    call("train.py", *common, "--epochs", 2, "--resume")
    assert json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))["precision"] == "mixed_bfloat16"
