"""A run that is stopped, in whatever way, goes on as if it had not been."""

import argparse
import contextlib
import csv
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import pytest
from conftest import REFERENCE, ROOT, call, copy_run, files, run_script

import evaluate
from data import DATA
from support import environment, record
from support.errors import InputError
from support.files import locked, write_json
from support.record import save_epoch
from support.resume import begin, settings_of
from support.run_folder import RUN_FILES, RUN_FLAGS, load_network, read_history, read_settings, writing
from train import new_model, parse_args

EPOCHS, LIMIT = 3, 64


def command(folder, data_file, *more, epochs=EPOCHS):
    """A short run of the real network, Dropout and all."""
    return ["train.py", "--output-dir", folder, "--data", data_file, "--epochs", epochs, "--limit", LIMIT, *more]


def weights(path):
    """The SHA-256 of a saved network's weights, bit for bit."""
    model = keras.saving.load_model(path, compile=False)
    return hashlib.sha256(b"".join(array.tobytes() for array in model.get_weights())).hexdigest()


def history(folder):
    """The history of a run, but for the seconds."""
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        return [row[:-1] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def uninterrupted(small_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    call(*command(folder, small_data))
    return folder


@pytest.fixture(scope="module")
def one_epoch(small_data, tmp_path_factory):
    """A finished run of one epoch, to be copied."""
    folder = tmp_path_factory.mktemp("one_epoch")
    call(*command(folder, small_data, epochs=1))
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


def test_stopped_after_an_epoch(uninterrupted, small_data, tmp_path):
    """By Ctrl-C, in a run that is too long to end before; how many epochs that takes is the machine's affair."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    process = start(*command(folder, small_data, epochs=1000))
    next(line for line in process.stdout if line.startswith("epoch 1/"))
    process.send_signal(signal.SIGINT)
    _, stderr = end_of(process)
    assert process.returncode == 130
    kept = re.fullmatch(r"train.py: stopped; epoch (\d+) is the last one kept; go on with: (.*)\n", stderr)
    assert kept.group(2) == f"{sys.executable} {os.path.relpath(ROOT / 'train.py')} --resume --output-dir {folder}"

    # What defines the run is in its settings.json, the data too.
    epochs = max(EPOCHS, int(kept.group(1)) + 1)
    output = call("train.py", "--resume", "--output-dir", folder, "--epochs", epochs)
    assert f": {kept.group(1)} of {epochs} epochs done" in output
    if epochs > EPOCHS:
        call(*command(whole, small_data, epochs=epochs))
    is_the_same_run(folder, whole if epochs > EPOCHS else uninterrupted)


def end_of(process):
    """What a process that is about to end still says, on both streams; one that goes on is killed, and that fails."""
    try:
        return process.communicate(timeout=120)
    finally:
        process.kill()


@pytest.mark.slow
def test_stopped_before_the_first_epoch_ends(uninterrupted, small_data, tmp_path):
    process = start(*command(tmp_path, small_data))
    process.stdout.readline()  # "Training on ..."
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "no epoch had ended" in stderr) == (143, True), stderr
    call(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


def test_finished_run_goes_on_and_history_is_put_right(one_epoch, uninterrupted, small_data, tmp_path):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    call(*command(tmp_path, small_data, "--resume", epochs=1))  # nothing to do, nothing undone
    with open(tmp_path / "history.csv", "a", encoding="utf-8") as file:
        file.write("2,0.9,0.8")  # a row begun before its network was there
    call(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_full_disk(one_epoch, uninterrupted, small_data, tmp_path):
    """No file may grow beyond 20 MB, the network needs 27: as on a full disk, writing fails half-way."""
    resource = pytest.importorskip("resource")  # not on Windows
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

    call(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
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
    assert weights(moved / "model.keras") == weights(one_epoch / "model.keras")


def test_loss_that_overflows_stops_the_run(uninterrupted, small_data, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.keras"
    model = keras.saving.load_model(path)
    model.set_weights([array * 1e12 for array in model.get_weights()])
    save_epoch(tmp_path, model, read_settings(tmp_path), read_history(tmp_path))
    before = path.read_bytes()
    done = run_script(*command(tmp_path, small_data, "--resume", epochs=EPOCHS + 1))
    assert done.returncode == 1
    assert re.fullmatch(rf"train.py: the loss became (inf|nan) in epoch {EPOCHS + 1}; .*\n", done.stderr)
    assert path.read_bytes() == before
    assert history(tmp_path) == history(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["history.csv", "model.keras"])
def test_killed_between_writing_and_renaming(file, uninterrupted, drawn, small_data, tmp_path):
    """SIGKILL when a file of epoch 2 is whole under its temporary name, and has not its place yet."""
    folder = tmp_path / "killed"
    shutil.copytree(drawn, folder)
    arguments = [str(part) for part in command(folder, small_data, "--resume")]
    code = f"""
import os, runpy, signal, sys
replace = os.replace
def kill_or_replace(old, new):
    if os.path.basename(new) == {file!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
os.replace = kill_or_replace
sys.argv = {arguments!r}
runpy.run_path("train.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(folder.glob(".part-*"))
    assert (folder / "training.png").exists() == (file == "history.csv")  # no result outlives its network
    call("evaluate.py", "--output-dir", folder)  # whatever is there can be measured
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["epoch"] == 1
    assert f": 1 of {EPOCHS} epochs done" in call(*command(folder, small_data, "--resume"))
    for name in STRANGERS:
        (folder / name).unlink()
    (folder / "reconstructions").rmdir()
    is_the_same_run(folder, uninterrupted)


def test_files_reach_the_disk_before_their_name_does(tmp_path, monkeypatch):
    """The order in which the system is asked: the content, the new name, the folder that holds it."""
    order = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(number):
        order.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "content")
        fsync(number)

    def watched_replace(old, new):
        order.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_json(tmp_path / "settings.json", {"epochs": 1})
    assert order == ["content", "name"] + ([] if os.name == "nt" else ["folder"])


@pytest.mark.slow
def test_two_trainings_never_share_a_folder(uninterrupted, small_data, tmp_path):
    """Beside a live run both ways in are refused; after its death by SIGKILL nothing stands in the way."""
    live = start(*command(tmp_path, small_data))
    live.stdout.readline()  # "Training on ..."
    live.send_signal(signal.SIGSTOP)  # at work, and still there when the others have been refused
    before = files(tmp_path)
    for way in ("--overwrite", "--resume"):
        with pytest.raises(InputError, match=f"^another train.py is at work in {tmp_path}: "):
            call(*command(tmp_path, small_data, way))
    assert files(tmp_path) == before
    live.kill()
    live.communicate()
    call(*command(tmp_path, small_data, "--resume"))
    is_the_same_run(tmp_path, uninterrupted)


RESULTS = (
    "metrics.json",
    "predictions.png",
    "training.png",
    "reconstructions.png",
    "reconstructions/00.png",
    "confusion_matrix.png",
)
STRANGERS = ("notes.txt", "reconstructions/mine.png", "my_metrics.json")


@pytest.fixture(scope="module")
def drawn_once(one_epoch, tmp_path_factory):
    """A run of one epoch, measured and drawn, with files of the user's beside it; to be copied."""
    folder = tmp_path_factory.mktemp("drawn_once")
    shutil.copytree(one_epoch, folder, dirs_exist_ok=True)
    call("evaluate.py", "--output-dir", folder)
    call("visualize.py", "--output-dir", folder)
    shutil.copy(folder / "training.png", folder / "predictions.png")
    for name in STRANGERS:
        (folder / name).write_text("mine", encoding="utf-8")
    return folder


@pytest.fixture
def drawn(drawn_once, tmp_path):
    """Such a run."""
    return Path(shutil.copytree(drawn_once, tmp_path / "drawn"))


def only_strangers_stay(folder):
    kept = {str(path) for path in files(folder)}
    assert kept == {".lock", ".writing", "settings.json", "history.csv", "model.keras", *STRANGERS}


def test_results_leave_with_their_network(drawn, small_data):
    assert {*RESULTS, *STRANGERS} <= {str(path) for path in files(drawn)}
    before = files(drawn)
    for refused in ("--seed 5", "--resume --seed 5"):
        with pytest.raises(InputError):
            call("train.py", *refused.split(), "--output-dir", drawn, "--data", small_data)
    assert files(drawn) == before
    call(*command(drawn, small_data, "--resume", epochs=1))  # nothing to train: they are still right
    assert {*RESULTS, *STRANGERS} <= {str(path) for path in files(drawn)}

    call(*command(drawn, small_data, "--resume", epochs=2))
    only_strangers_stay(drawn)
    call("evaluate.py", "--output-dir", drawn)
    assert json.loads((drawn / "metrics.json").read_text(encoding="utf-8"))["epoch"] == 2
    call(*command(drawn, small_data, "--overwrite", epochs=1))
    only_strangers_stay(drawn)


def test_a_new_run_begins_without_the_former_ones_results(drawn):
    """Before its first epoch, too: a run that is stopped there leaves nothing of the one it replaced."""
    settings = begin(drawn, {"epochs": 1}, overwrite=True)
    assert {str(path) for path in files(drawn)} == {".lock", ".writing", "settings.json", *STRANGERS}
    assert json.loads((drawn / "settings.json").read_text(encoding="utf-8")) == settings


def test_pictures_folder_goes_when_it_is_empty(drawn, small_data):
    (drawn / "reconstructions" / "mine.png").unlink()
    call(*command(drawn, small_data, "--overwrite", epochs=1))
    assert not (drawn / "reconstructions").exists()


@pytest.mark.slow
def test_a_run_can_be_looked_at_while_it_trains(small_data, tmp_path):
    """Held between two epochs, which are far shorter than a measurement here, and far longer in a real run."""
    process = start(*command(tmp_path, small_data, epochs=1000))
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGSTOP)
    output = call("evaluate.py", "--output-dir", tmp_path)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    after = int(re.search(r"after epoch (\d+),", output).group(1))
    assert 2 <= after < 1000
    call("evaluate.py", "--output-dir", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["epoch"] == len(history(tmp_path)) - 1


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        ("evaluate", "while the network is read"),
        ("visualize", "while it is measured"),
        ("predict", "while it is measured"),
    ],
)
def test_no_result_beside_a_network_that_it_does_not_belong_to(
    script, moment, one_epoch, uninterrupted, tmp_path, monkeypatch
):
    """An epoch ends at the worst moment: the results of the old network are not written, and that is said."""
    copy_run(one_epoch, tmp_path)
    place, name = (keras.saving, "load_model") if "read" in moment else (importlib.import_module(script), "run_network")
    original = getattr(place, name)

    def epoch_ends(*arguments, **more):
        returned = original(*arguments, **more) if "measured" in moment else None
        monkeypatch.setattr(place, name, original)
        model = keras.saving.load_model(uninterrupted / "model.keras")
        save_epoch(tmp_path, model, read_settings(uninterrupted), read_history(uninterrupted))
        return original(*arguments, **more) if "read" in moment else returned

    monkeypatch.setattr(place, name, epoch_ends)
    pictures = [ROOT / "docs" / "three.jpg"] if script == "predict" else []
    with pytest.raises(InputError, match=r"the network in .* has been replaced: measure it again"):
        call(f"{script}.py", "--output-dir", tmp_path, *pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing", *sorted(RUN_FILES)]
    call(f"{script}.py", "--output-dir", tmp_path, *pictures)


def test_writers_do_not_stand_in_each_others_way(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_json(tmp_path / "metrics.json", {"epoch": number}), range(600)))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["epoch"] in range(600)
    assert len(files(tmp_path)) == 1


@pytest.mark.slow
def test_three_drawings_at_once(one_epoch, tmp_path):
    copy_run(one_epoch, tmp_path)
    processes = [start("visualize.py", "--output-dir", tmp_path, "--count", 20) for _ in range(3)]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", "", ""]
    assert [process.returncode for process in processes] == [0, 0, 0]


def test_what_a_killed_process_left_is_cleared_away(one_epoch, tmp_path):
    copy_run(one_epoch, tmp_path)
    (tmp_path / ".part-of-a-killed-one").mkdir()
    (tmp_path / ".part-of-a-killed-one" / "model.keras").touch()
    call("evaluate.py", "--output-dir", tmp_path)
    assert not list(tmp_path.glob(".part-*"))


def test_another_librarys_warning_is_no_damage(one_epoch, small_data, tmp_path, monkeypatch):
    """Only Keras' own warning, that a file has no optimizer, ends a resumed run."""
    copy_run(one_epoch, tmp_path)
    load_weights = keras.Model.load_weights

    def warn_and_load(*arguments, **more):
        warnings.warn("h5py will change", DeprecationWarning, stacklevel=1)
        load_weights(*arguments, **more)

    monkeypatch.setattr(keras.Model, "load_weights", warn_and_load)
    with pytest.warns(DeprecationWarning, match="h5py will change"):
        call(*command(tmp_path, small_data, "--resume", epochs=2))
    assert len(read_history(tmp_path)) == 2


def test_the_optimizer_is_recorded_as_it_is(one_epoch):
    """And not as train.py's constants have it, which another optimizer in compile_model() would leave as they are."""
    settings = read_settings(one_epoch)
    assert (settings["optimizer"], settings["momentum"], settings["nesterov"]) == ("SGD", 0.9, True)
    model = new_model()
    model.compile(keras.optimizers.Adam(0.002), loss="mean_squared_error")
    changed = settings_of(model, argparse.Namespace(**{name: settings[name] for name in RUN_FLAGS}), {})
    assert (changed["optimizer"], changed["beta_1"]) == ("Adam", 0.9)
    assert "momentum" not in changed


def test_every_start_is_recorded_and_a_change_is_said(one_epoch, small_data, tmp_path):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["starts"][0]["keras"] = "3.0.0"
    path.write_text(json.dumps(settings), encoding="utf-8")
    output = call(*command(tmp_path, small_data, "--resume", epochs=2))
    assert f"this run began with keras 3.0.0, not {keras.__version__}" in output
    first, second = json.loads(path.read_text(encoding="utf-8"))["starts"]
    assert (first["keras"], first["after_epoch"]) == ("3.0.0", 0)
    assert (second["keras"], second["after_epoch"]) == (keras.__version__, 1)


def test_a_changed_network_is_not_gone_on_with(one_epoch, small_data, tmp_path):
    """Dropout at 0.5 in model.py: the same weights fit, and yet it is another network."""
    code, run = tmp_path / "code", tmp_path / "run"
    shutil.copytree(one_epoch, run)
    code.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, code)
    shutil.copytree(ROOT / "support", code / "support")
    text = (code / "model.py").read_text(encoding="utf-8")
    (code / "model.py").write_text(text.replace("DROPOUT = 0.1", "DROPOUT = 0.5"), encoding="utf-8")
    before = files(run)
    done = run_script(code / "train.py", "--resume", "--epochs", 2, "--output-dir", run)
    assert done.returncode == 1
    assert "this run has another network" in done.stderr
    assert "model.py" in done.stderr
    assert files(run) == before


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_flipped_byte_in_the_archives_directory_is_damage(script, one_epoch, small_data, tmp_path):
    """The version that is needed to unpack, say: zipfile's NotImplementedError."""
    copy_run(one_epoch, tmp_path)
    content = bytearray((tmp_path / "model.keras").read_bytes())
    directory = content.rfind(b"PK\x01\x02")
    content[directory + 6] ^= 0xFF
    (tmp_path / "model.keras").write_bytes(content)
    flags = ["--resume", "--epochs", 2] if script == "train.py" else []
    with pytest.raises(InputError, match=r"model.keras: "):
        call(script, *flags, "--output-dir", tmp_path)


def test_what_was_measured_is_said_even_if_it_cannot_be_written(one_epoch, tmp_path, capsys, monkeypatch):
    copy_run(one_epoch, tmp_path)

    def no_space(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(sys.modules["evaluate"], "write_json", no_space)
    with pytest.raises(OSError, match="No space left"):
        evaluate.main(["--output-dir", str(tmp_path)])
    assert "Test accuracy" in capsys.readouterr().out


def test_a_folder_with_the_name_of_a_result_costs_no_epoch(one_epoch, small_data, tmp_path):
    copy_run(one_epoch, tmp_path)
    for name in ("predictions.png", "reconstructions/07.png"):
        (tmp_path / name).mkdir(parents=True)
    call(*command(tmp_path, small_data, "--resume", epochs=2))
    assert (tmp_path / "predictions.png").is_dir()
    assert len(read_history(tmp_path)) == 2


def test_a_run_that_cannot_be_resumed_is_not_advised_to(tmp_path):
    copy_run(REFERENCE, tmp_path)
    with pytest.raises(InputError, match=r"holds a run: replace it with --overwrite"):
        call("train.py", "--output-dir", tmp_path)


def test_a_link_to_nowhere_as_a_folder(small_data, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere" / "deep")
    with pytest.raises(InputError, match=r"run is there and no folder"):
        call(*command(tmp_path / "run", small_data))


def test_a_network_of_another_run_is_not_taken_for_this_ones(one_epoch, small_data, tmp_path):
    """It would be drawn with this one's history, measured as if it were trained so, and given its names."""
    other = tmp_path / "other"
    call("train.py", "--output-dir", other, "--data", small_data, "--epochs", 1, "--limit", LIMIT, "--seed", 1)
    copy_run(one_epoch, tmp_path)
    shutil.copy(other / "model.keras", tmp_path)
    for script, *more in (["visualize.py"], ["evaluate.py"], ["predict.py", ROOT / "docs" / "three.jpg"]):
        before = files(tmp_path)
        with pytest.raises(InputError, match=r"model.keras is of another run than settings.json"):
            call(script, "--output-dir", tmp_path, *more)
        assert files(tmp_path) == before


def exchange_columns(folder):
    """Rewrite a run's history as an older version wrote it: the same columns in another order."""
    rows = read_history(folder)
    with open(folder / "history.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, sorted(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_history_in_another_order_goes_on_by_name(one_epoch, uninterrupted, small_data, tmp_path):
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    exchange_columns(tmp_path)
    call(*command(tmp_path, small_data, "--resume", epochs=2))
    expected = read_history(uninterrupted, 2)
    for row, whole in zip(read_history(tmp_path), expected, strict=True):
        assert {**row, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("columns", ["one more", "one less"])
def test_a_history_of_other_columns_is_refused_after_the_first_step(columns, one_epoch, small_data, tmp_path):
    copy_run(one_epoch, tmp_path)
    path = tmp_path / "history.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    if columns == "one more":
        lines = [f"{line},{end}" for line, end in zip(lines, ("even_loss", "0.5"))]
    else:
        assert lines[0].endswith(",seconds")
        lines = [line.rpartition(",")[0] for line in lines]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"other columns than train.py, only one of both has (even_loss|seconds): "):
        call(*command(tmp_path, small_data, "--resume", epochs=2))
    after = files(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} <= {Path("settings.json"), *map(Path, LOCKS)}


LOCKS = (".lock", ".writing")


@pytest.mark.slow
def test_a_run_whose_folder_was_moved_does_not_write_into_another(one_epoch, small_data, tmp_path):
    """Stopped as by Ctrl-Z; its folder gets another name, a second run has the old one; then the first goes on."""
    folder, moved = tmp_path / "outputs", tmp_path / "outputs-a"
    process = start(*command(folder, small_data, epochs=1000))
    next(line for line in process.stdout if line.startswith("epoch 1/"))
    process.send_signal(signal.SIGSTOP)
    folder.rename(moved)
    shutil.copytree(one_epoch, folder)
    before = files(folder)
    process.send_signal(signal.SIGCONT)
    _, stderr = end_of(process)
    assert process.returncode == 1
    assert stderr.count("\n") == 1
    # It may have been stopped while it wrote, which then fails in another way.
    assert re.search(r"is not the folder in which this training began: find it|No such file or directory", stderr)
    assert files(folder) == before


def test_the_lock_that_a_training_holds_is_compared_before_it_writes(one_epoch, tmp_path):
    folder = Path(shutil.copytree(one_epoch, tmp_path / "outputs"))
    model, _ = load_network(folder, compiled=True)
    arguments = folder, model, read_settings(folder), read_history(folder)
    with locked(folder / ".lock", "train.py") as lock:
        save_epoch(*arguments, lock)
        folder.rename(tmp_path / "outputs-a")
        shutil.copytree(one_epoch, folder)
        before = files(folder)
        with pytest.raises(InputError, match=r"outputs is not the folder in which this training began: find it"):
            save_epoch(*arguments, lock)
        assert files(folder) == before


def test_what_decides_the_rounding_is_recorded_and_a_change_is_said(one_epoch, small_data, tmp_path, monkeypatch):
    copy_run(one_epoch, tmp_path)
    (before,), changed = read_settings(tmp_path)["starts"], {"ONEDNN_MAX_CPU_ISA": "all", "TF_NUM_INTRAOP_THREADS": "7"}
    assert {name: before[name] for name in environment.ROUNDING} == {n: os.environ.get(n) for n in environment.ROUNDING}
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    said = call(*command(tmp_path, small_data, "--resume", epochs=1))
    differ = re.findall("The numbers may differ, this run began with (.*)", said)
    assert differ == [f"{name} {before[name] or 'not set'}, not {value}" for name, value in changed.items()]
    first, second = read_settings(tmp_path)["starts"]
    assert first == before
    assert {name: second[name] for name in changed} == changed
    assert first["TF_ENABLE_ONEDNN_OPTS"] == second["TF_ENABLE_ONEDNN_OPTS"] is not None


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_the_checksum_is_of_the_bytes_that_were_read(script, one_epoch, small_data, tmp_path, monkeypatch):
    """The file is exchanged as soon as it has been read."""
    data, folder = Path(shutil.copy(small_data, tmp_path / "data.npz")), tmp_path / "run"
    expected = hashlib.sha256(data.read_bytes()).hexdigest()
    module, name = importlib.import_module(script), {"evaluate": "run_network", "train": "new_model"}[script]
    original = getattr(module, name)

    def exchange(*arguments, **more):
        data.write_bytes(DATA.read_bytes())
        return original(*arguments, **more)

    monkeypatch.setattr(module, name, exchange)
    if script == "evaluate":
        folder.mkdir()
        copy_run(one_epoch, folder)
        call("evaluate.py", "--output-dir", folder, "--data", data)
    else:
        call(*command(folder, data, epochs=1))
    assert data.read_bytes() == DATA.read_bytes()
    written = json.loads((folder / f"{'metrics' if script == 'evaluate' else 'settings'}.json").read_text("utf-8"))
    assert written["data_sha256"] == expected


def test_other_weights_are_another_network(one_epoch, tmp_path):
    """Of the same run and epoch: what was measured of the one is not written beside the other."""
    copy_run(one_epoch, tmp_path)
    model, stamp = load_network(tmp_path, compiled=True)
    model.set_weights([2 * array for array in model.get_weights()])
    save_epoch(tmp_path, model, read_settings(tmp_path), read_history(tmp_path))
    with pytest.raises(InputError, match="has been replaced"), writing(tmp_path, stamp):
        pass
    with writing(tmp_path, load_network(tmp_path)[1]):
        pass


def test_the_network_comes_last(drawn, monkeypatch):
    """When it gets its name, the history has its epoch already, and no result of the old one is left."""
    model, _ = load_network(drawn, compiled=True)
    settings, history = read_settings(drawn), read_history(drawn)
    replace, seen = os.replace, []

    def look_and_replace(old, new):
        if Path(new).name == "model.keras":
            seen.append((len(read_history(drawn)), any((drawn / name).exists() for name in RESULTS)))
        replace(old, new)

    monkeypatch.setattr(os, "replace", look_and_replace)
    save_epoch(drawn, model, settings, [*history, {**history[0], "epoch": 2}])
    assert seen == [(2, False)]


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path / ".lock", "train.py"):
        for _ in range(2):
            with pytest.raises(InputError, match=r"another train.py"), locked(tmp_path / ".lock", "train.py"):
                pass
    with locked(tmp_path / ".lock", "train.py"):
        pass


def test_a_training_holds_its_lock_to_the_end(small_data, tmp_path, monkeypatch):
    """When an epoch is saved, the last thing that a training does, another one is refused."""
    refused = []

    def save_and_try(folder, *arguments):
        try:
            with locked(folder / ".lock", "train.py"):
                refused.append(False)
        except InputError:
            refused.append(True)
        save_epoch(folder, *arguments)

    monkeypatch.setattr(record, "save_epoch", save_and_try)
    call("train.py", "--output-dir", tmp_path, "--data", small_data, "--epochs", 2, "--limit", 8)
    assert refused == [True, True]
    with locked(tmp_path / ".lock", "train.py"), pytest.raises(InputError, match=r"another train.py is at work"):
        call("train.py", "--output-dir", tmp_path, "--resume", "--epochs", 3)


def test_what_resume_leaves_open_is_as_it_was(one_epoch, tmp_path):
    copy_run(one_epoch, tmp_path)
    path = tmp_path / "settings.json"
    changed = {"epochs": 7, "batch_size": 24, "seed": 5, "limit": 9, "loss_weights": [0.3, 0.7]}
    changed |= {"precision": "mixed_bfloat16"}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    found = vars(parse_args(["--resume", "--output-dir", str(tmp_path)]))
    assert {name: found[name] for name in changed} == changed
    found = vars(parse_args(["--resume", "--output-dir", str(tmp_path), "--epochs", "8"]))
    assert (found["epochs"], found["batch_size"]) == (8, 24)


def test_a_finished_run_says_what_is_left(one_epoch):
    said = call("train.py", "--resume", "--output-dir", one_epoch)
    assert "Nothing is left to train; more --epochs train it further" in said


def test_the_recorded_network_cannot_be_trained_further(small_data, tmp_path):
    """It was saved without its optimizer, and all else of its run is there."""
    copy_run(REFERENCE, tmp_path)
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"model.keras holds no optimizer, it can only be measured"):
        call("train.py", "--resume", "--epochs", 21, "--output-dir", tmp_path)
    assert {path: content for path, content in files(tmp_path).items() if path.name != ".lock"} == before


KILLS = 20


@pytest.mark.slow
def test_twenty_kills(small_data, tmp_path):
    """SIGKILL at random moments, half of them while the network is being written; nothing is lost."""
    epochs, seed = 100, int(os.environ.get("KILL_SEED", time.time()))
    print(f"\nKILL_SEED={seed}")
    moments = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call(*command(whole, small_data, epochs=epochs))

    def being_written(since):
        with contextlib.suppress(FileNotFoundError):  # it may just have got its name
            return any(path.stat().st_mtime_ns > since for path in killed.glob(".part-*/model.keras"))
        return False

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

    call(*command(killed, small_data, "--resume", epochs=epochs))
    print(f"{KILLS} of {KILLS} kills survived, {in_writing} while the network was written")
    for folder in (whole, killed):
        print(f"{folder.name}: weights {weights(folder / 'model.keras')}, {len(history(folder)) - 1} epochs of history")
    is_the_same_run(killed, whole)
