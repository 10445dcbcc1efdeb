"""A run that is stopped, in whatever way, goes on as if it had not been."""

import csv
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import keras
import pytest
from conftest import ROOT, files, run_script, succeed

from run_folder import read_stamp, write_keras

EPOCHS, LIMIT = 3, 96


def command(folder, data_file, *more, epochs=EPOCHS):
    """A short run of the real network, Dropout and all."""
    return ["train.py", "--output-dir", folder, "--data", data_file, "--epochs", epochs, "--limit", LIMIT, *more]


def weights(path):
    """The SHA-256 of a saved network's weights, bit for bit."""
    model = keras.saving.load_model(path, compile=False)
    return hashlib.sha256(b"".join(array.tobytes() for array in model.get_weights())).hexdigest()


def history(folder):
    """The history of a run, but for the seconds."""
    with open(folder / "history.csv", newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def uninterrupted(small_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeed(*command(folder, small_data))
    return folder


@pytest.fixture(scope="module")
def one_epoch(small_data, tmp_path_factory):
    """A finished run of one epoch, to be copied."""
    folder = tmp_path_factory.mktemp("one_epoch")
    succeed(*command(folder, small_data, epochs=1))
    return folder


def is_the_same_run(folder, uninterrupted):
    assert weights(folder / "model.keras") == weights(uninterrupted / "model.keras")
    assert history(folder) == history(uninterrupted)
    assert sorted(files(folder)) == sorted(files(uninterrupted))


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, ROOT / arguments[0], *map(str, arguments[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("epoch", "number", "status"), [(1, signal.SIGTERM, 143), (2, signal.SIGINT, 130)])
def test_stopped_after_an_epoch(epoch, number, status, uninterrupted, small_data, tmp_path):
    process = start(*command(tmp_path, small_data))
    for line in process.stdout:
        if line.startswith(f"epoch {epoch}/"):
            process.send_signal(number)
            break
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert re.fullmatch(rf"train.py: stopped; epoch {epoch} is the last one kept; go on with: .*\n", stderr)
    assert f"go on with: python train.py --resume --output-dir {tmp_path}\n" in stderr

    # What defines the run is in its settings.json, the data too.
    output = succeed("train.py", "--resume", "--output-dir", tmp_path)
    assert f": {epoch} of {EPOCHS} epochs done" in output
    is_the_same_run(tmp_path, uninterrupted)


def test_stopped_before_the_first_epoch_ends(uninterrupted, small_data, tmp_path):
    process = start(*command(tmp_path, small_data))
    process.stdout.readline()  # "Training on ..."
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "no epoch had ended" in stderr
    succeed(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


def test_finished_run_goes_on_and_history_is_put_right(one_epoch, uninterrupted, small_data, tmp_path):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    succeed(*command(tmp_path, small_data, "--resume", epochs=1))  # nothing to do, nothing undone
    with open(tmp_path / "history.csv", "a") as file:
        file.write("2,0.9,0.8")  # a row begun before its checkpoint was there
    succeed(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


def test_full_disk(one_epoch, uninterrupted, small_data, tmp_path):
    """No file may grow beyond 20 MB, the checkpoint needs 27: as on a full disk, writing fails half-way."""
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path)
    done = subprocess.run(
        [sys.executable, *map(str, command(tmp_path, small_data, "--resume"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)),
    )
    assert done.returncode == 1
    assert re.fullmatch(r"train.py: .*; epoch 1 is the last one kept; go on with: .*\n", done.stderr)
    after = files(tmp_path)
    assert sorted(after) == sorted(before)
    assert {path for path in before if before[path] != after[path]} == {
        path for path in before if path.name == "settings.json"
    }

    succeed(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


def test_folder_vanishes_while_training(one_epoch, small_data, tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    process = start(*command(folder, small_data))
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            folder.rename(moved)
            break
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.count("\n") == 1
    assert "No such file or directory" in stderr
    assert weights(moved / "checkpoint.keras") == weights(one_epoch / "checkpoint.keras")


def test_loss_that_overflows_stops_the_run(uninterrupted, small_data, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    checkpoint = tmp_path / "checkpoint.keras"
    model = keras.saving.load_model(checkpoint)
    model.set_weights([array * 1e12 for array in model.get_weights()])
    write_keras(checkpoint, model, read_stamp(checkpoint)[0], EPOCHS)
    before = checkpoint.read_bytes()
    done = run_script(*command(tmp_path, small_data, "--resume", epochs=EPOCHS + 1))
    assert done.returncode == 1
    assert re.fullmatch(rf"train.py: the loss became (inf|nan) in epoch {EPOCHS + 1}; .*\n", done.stderr)
    assert checkpoint.read_bytes() == before
    assert history(tmp_path) == history(uninterrupted)


KILLS = 20


@pytest.mark.slow
def test_twenty_kills(small_data, tmp_path):
    """SIGKILL at random moments, half of them while the checkpoint is being written; nothing is lost."""
    epochs, seed = 100, int(os.environ.get("KILL_SEED", time.time()))
    print(f"\nKILL_SEED={seed}")
    moments = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unfinished = killed / ".checkpoint.part.keras"
    succeed(*command(whole, small_data, epochs=epochs))

    def being_written(since):
        return unfinished.exists() and unfinished.stat().st_mtime_ns > since

    kept = in_writing = 0
    for kill in range(1, KILLS + 1):
        resume = ["--resume"] if killed.exists() else []
        process = start(*command(killed, small_data, *resume, epochs=epochs))
        done = int(re.search(r": (\d+) of", process.stdout.readline()).group(1))
        assert done >= kept, "an epoch was lost"
        started = time.time_ns()
        time.sleep(moments.uniform(0, 7))  # the first epoch of a process ends after about three seconds
        if kill % 2:
            while not being_written(started):
                assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(moments.uniform(0, 0.1))
        process.kill()
        in_writing += being_written(started)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        kept = max([done, *map(int, re.findall(r"^epoch (\d+)/", output, re.MULTILINE))])
        print(f"kill {kill}: went on after epoch {done}, killed after epoch {kept}")
    assert in_writing >= 3
    assert kept >= 5

    succeed(*command(killed, small_data, "--resume", epochs=epochs))
    print(f"{KILLS} of {KILLS} kills survived, {in_writing} while the checkpoint was written")
    for folder in (whole, killed):
        print(f"{folder.name}: weights {weights(folder / 'model.keras')}, {len(history(folder)) - 1} epochs of history")
    is_the_same_run(killed, whole)
