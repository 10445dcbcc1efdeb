"""The pulls of the two tasks at the shared layers: against TensorFlow's own gradients, and the record of them."""

import keras
import numpy as np
import pandas
import pytest
from conftest import STUDY

from data import make_targets, preprocess
from experiments.second_task import pulls
from support.backend import reseed
from support.errors import InputError
from support.files import locked
from train import new_model


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the gradients are TensorFlow's")
def test_a_pull_is_the_norm_of_the_gradient(mnist):
    """Of the recorded network, over three batches, with its Dropout masks."""
    import tensorflow as tf

    images, labels = (part[:96] for part in mnist[0])
    weights = keras.saving.load_model(pulls.RECORDED).get_weights()
    found = pulls.pulls(pulls.new_probes(10), weights, images, labels)
    assert len(found) == 3

    network, by_hand = new_model(seed=7), []
    network.set_weights(weights)
    encoder = [weight.value for number in range(1, 7) for weight in network.get_layer(f"conv{number}").weights]
    for number in range(3):
        batch = slice(32 * number, 32 * number + 32)
        x = preprocess(images[batch])
        truth = make_targets(x, labels[batch], 10)["classification"]
        reseed(network, 0, number)
        with tf.GradientTape(persistent=True) as tape:
            probabilities, drawings = network(x, training=True)
            losses = (
                0.9 * tf.reduce_mean(keras.losses.categorical_crossentropy(truth, probabilities)),
                10 * tf.reduce_mean(tf.square(drawings - x)),
            )
        first, second = (np.concatenate([np.ravel(part) for part in tape.gradient(loss, encoder)]) for loss in losses)
        norms = np.linalg.norm(first), np.linalg.norm(second)
        by_hand.append((*norms, norms[0] / norms[1], first @ second / (norms[0] * norms[1])))
    assert found.to_numpy() == pytest.approx(np.array(by_hand), rel=1e-3)


def test_the_record_is_whole():
    """Five seeds at three weights, each after so many steps; and the recorded network, batch by batch."""
    rows = pandas.read_csv(STUDY / pulls.CSV)
    expected = {(weight, seed, steps) for weight in (0.1, 1, 10) for seed in range(5) for steps in pulls.STEPS}
    assert {*rows[pulls.KEY].itertuples(index=False, name=None)} == expected
    assert len(rows) == len(expected)
    assert len(rows[["commit", "threads", "machine", "versions"]].drop_duplicates()) == 1
    # Before training there is one network a seed, whatever the weight; the pull of a loss is in proportion to it.
    start = rows[rows["steps"] == 0].pivot(index="seed", columns="weight", values="autoencoder_pull")
    assert start[1].tolist() == pytest.approx((10 * start[0.1]).tolist(), rel=1e-3)
    assert start[10].tolist() == pytest.approx((100 * start[0.1]).tolist(), rel=1e-3)
    assert len(pandas.read_csv(STUDY / pulls.CSV_RECORDED)) == pulls.BATCHES_RECORDED == 100


@pytest.mark.parametrize("content", ["", "weight,seed\n0.1,0\n", "a,b\n1,2,3,4\n5\n"])
def test_a_damaged_table_is_one_line_and_stays(content, tmp_path):
    (tmp_path / "pulls.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"pulls\.csv: damaged"):
        pulls.main(["--output-dir", str(tmp_path)])
    assert (tmp_path / "pulls.csv").read_text(encoding="utf-8") == content
    assert not (tmp_path / "pulls.png").exists()


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    with locked(tmp_path / ".lock"), pytest.raises(InputError, match=r"another pulls\.py is at work in"):
        pulls.main(["--output-dir", str(tmp_path)])


@pytest.mark.slow
def test_in_miniature_it_measures_medians_and_draws(tmp_path, mnist, capsys):
    recorded, *runs = pulls.plan()
    planned = [{**recorded, "batches": 2}, *({**run, "steps": [0, 2], "batches": 2} for run in runs[:2])]
    flags = ["--output-dir", str(tmp_path), "--threads", "1"]
    pulls.main(flags, planned)
    assert "3 of 3 tasks done" in capsys.readouterr().out
    rows = pandas.read_csv(tmp_path / "pulls.csv")
    assert rows[pulls.KEY].values.tolist() == [[0.1, 0, 0], [0.1, 0, 2], [1, 0, 0], [1, 0, 2]]
    assert len(pandas.read_csv(tmp_path / "pulls_of_batches.csv")) == 2
    assert (tmp_path / "pulls.png").stat().st_size > 10_000
    written = [path.read_bytes() for path in sorted(tmp_path.glob("pulls*"))]
    pulls.main(flags, planned)
    assert "tasks done" not in capsys.readouterr().out
    assert written == [path.read_bytes() for path in sorted(tmp_path.glob("pulls*"))]

    images, labels = (part[:64] for part in mnist[0])
    found = pulls.pulls(pulls.new_probes(0.1), new_model(seed=0).get_weights(), images, labels)
    assert rows.loc[0, found.columns].tolist() == pytest.approx(found.median().tolist(), rel=1e-3, abs=1e-4)


def test_the_plan_is_five_seeds_at_three_weights_and_the_recorded_network():
    recorded, *runs = pulls.plan()
    assert recorded == {"batches": 100}
    assert [(run["weight"], run["seed"]) for run in runs] == [(w, seed) for seed in range(5) for w in (0.1, 1, 10)]
    assert {(tuple(run["steps"]), run["batches"]) for run in runs} == {((0, 10, 25, 50, 100, 200, 400, 800), 20)}
