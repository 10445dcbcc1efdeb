"""What a user's machine does to the program: keras.json, matplotlibrc, Graphviz, the terminal, the clock, memory."""

import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, call, copy_run, run_script, succeed

import visualize
from evaluate import run_network
from support import cli, environment, files, quiet, run_folder
from support.backend import keras_settings
from support.errors import InputError
from train import LOSS_WEIGHTS, new_model, train

linux = pytest.mark.skipif(sys.platform != "linux", reason="made for Linux")


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """The folder of a finished run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    call("train.py", "--output-dir", folder, "--data", small_data, "--epochs", 1, "--limit", 32)
    return folder


def train_a_little(images, labels):
    """The weights and outputs of a network after one step, as one array."""
    few = images[:8], labels[:8]
    model = new_model()
    train(model, few, few, epochs=1, batch_size=8)
    return np.concatenate([array.ravel() for array in (*model.get_weights(), *run_network(model, images[:8]).values())])


@pytest.fixture(scope="module")
def trained_a_little(mnist):
    return train_a_little(*mnist[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("floatx", "float16"), ("floatx", "float64"), ("epsilon", 0.5), ("image_data_format", "channels_first")],
)
def test_what_keras_json_sets_changes_no_number(name, value, mnist, trained_a_little):
    setter, before = getattr(keras.config, f"set_{name}"), keras.config.dtype_policy()
    with keras_settings():  # which puts back what was
        if name == "floatx":
            keras.config.set_dtype_policy(value)  # as Keras itself does when it starts with this file
        setter(value)
        with keras_settings():
            assert getattr(keras.config, name)() == {"floatx": "float32", "epsilon": 1e-7}.get(name, "channels_last")
        found = train_a_little(*mnist[0])
        assert getattr(keras.config, name)() == value
        assert keras.config.dtype_policy().name == (value if name == "floatx" else "float32")
    assert found.dtype == np.float32
    assert np.array_equal(found, trained_a_little)
    assert (keras.config.floatx(), keras.config.dtype_policy()) == ("float32", before)


@pytest.mark.parametrize("name", ["max_epochs", "max_steps_per_epoch"])
def test_keras_variables_that_shorten_a_training_change_no_number(name, mnist):
    """KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH set these. Two epochs of two steps, and 502 answers."""
    images, labels = mnist[0]
    few, test_set = (images[:16], labels[:16]), (images[:502], labels[:502])
    ends, measured = [], []
    for limit in (None, 1):
        getattr(keras.config, f"set_{name}")(limit)
        model = new_model()
        rows = train(model, few, test_set, epochs=2, batch_size=8).epoch
        ends.append(np.concatenate([array.ravel() for array in model.get_weights()]))
        measured.append(
            [len(rows), model.optimizer.iterations.numpy(), len(run_network(model, images[:502])["classification"])]
        )
        assert getattr(keras.config, name)() == limit
        getattr(keras.config, f"set_{name}")(None)
    assert measured == [[2, 4, 502], [2, 4, 502]]
    assert np.array_equal(*ends)


@pytest.mark.slow
def test_keras_json_changes_nothing_for_the_scripts(trained, small_data, tmp_path):
    """The same weights, to the bit."""
    home, folder = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    settings = {"floatx": "float16", "epsilon": 0.5, "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps({**settings, "backend": keras.backend.backend()}), encoding="utf-8")
    flags = "--output-dir", folder, "--data", small_data, "--epochs", 1, "--limit", 32
    succeed("train.py", *flags, KERAS_HOME=str(home))
    for expected, array in zip(*(run_folder.load_network(place)[0].get_weights() for place in (trained, folder))):
        assert np.array_equal(expected, array)


@pytest.mark.parametrize("version", ["3.12.0", pytest.param("3.14.0", marks=pytest.mark.slow)])
def test_a_run_goes_on_after_an_upgrade_of_keras(version, trained, small_data, tmp_path):
    """The network's configuration is what that Keras wrote for it, and differs from today's in many places."""
    copy_run(trained, tmp_path)
    with zipfile.ZipFile(tmp_path / "model.keras") as today, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for name in today.namelist():
            if name == "config.json":
                config = Path(__file__).with_name(f"keras-{version}.json").read_text(encoding="utf-8")
                assert json.loads(config)["config"] != json.loads(today.read(name))["config"]
                old.writestr(name, config)
            else:
                old.writestr(name, today.read(name))
        old.comment = today.comment
    (tmp_path / "old.keras").replace(tmp_path / "model.keras")
    settings = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    settings["starts"][0]["keras"] = version
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    said = call("train.py", "--resume", "--epochs", 2, "--output-dir", tmp_path)
    assert f"this run began with keras {version}, not {keras.__version__}" in said
    assert run_folder.load_network(tmp_path)[1]["epoch"] == 2


@pytest.mark.slow
@linux
def test_matplotlibrc_does_not_decide_over_the_pictures(trained, tmp_path):
    settings = "text.usetex: True\nfont.family: No Such Font\nsavefig.dpi: 10\nno.such.key: 1\nfigure.facecolor: red\n"
    (tmp_path / "matplotlibrc").write_text(settings, encoding="utf-8")
    for folder in ("plain", "theirs"):
        (tmp_path / folder).mkdir()
        copy_run(trained, tmp_path / folder)
    call("visualize.py", "--output-dir", tmp_path / "plain")
    theirs = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLBACKEND": "nonsense"}
    succeed("visualize.py", "--output-dir", tmp_path / "theirs", **theirs)
    for path in (tmp_path / "plain").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "theirs" / path.relative_to(tmp_path / "plain")).read_bytes(), path.name


@linux
@pytest.mark.parametrize("script", ["echo no memory >&2; exit 1", "kill -9 $$"], ids=["fails", "is killed"])
def test_graphviz_that_does_not_work(script, trained, tmp_path, monkeypatch):
    """One line says so, and all else is drawn."""
    dot = tmp_path / "bin" / "dot"
    dot.parent.mkdir()
    dot.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", str(dot.parent), prepend=os.pathsep)
    copy_run(trained, tmp_path)
    output = call("visualize.py", "--output-dir", tmp_path)
    assert not (tmp_path / "model.png").exists()
    assert (tmp_path / "mistakes.png").exists()
    first, second = output.splitlines()
    assert first == "No model.png, Graphviz fails: try another version of it, or https://graphviz.org"
    assert second.startswith("Wrote the pictures to ")


@linux
def test_a_network_that_graphviz_cannot_draw_with_right_angles(tmp_path, monkeypatch):
    """As it happens with twelve classes and images of 128x128x3: it aborts, and draws straight lines."""
    dot = tmp_path / "dot"
    dot.write_text(
        '#!/bin/sh\nfor file; do :; done\n! grep -q splines=ortho "$file" || kill -6 $$\necho drawn\n', "utf-8"
    )
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visualize.draw_model(new_model()) == b"drawn\n"


@linux
@pytest.mark.slow
def test_paths_that_a_terminal_cannot_show(trained, tmp_path):
    folder = tmp_path / os.fsdecode("実験".encode() + b"\xff")
    folder.mkdir()
    copy_run(trained, folder)
    said = succeed("evaluate.py", "--output-dir", folder, PYTHONIOENCODING="ascii")
    assert folder.name.encode("ascii", "backslashreplace").decode() in said


@pytest.mark.slow
@linux
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_output_that_cannot_be_written(script, trained, tmp_path):
    copy_run(trained, tmp_path)
    flags = ["--resume"] if script == "train.py" else []
    command = shlex.join([sys.executable, str(ROOT / script), *flags, "--output-dir", str(tmp_path)])
    done = subprocess.run(["sh", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"{script}: the output could not be written \(No space left on .*\n", done.stderr)
    assert (tmp_path / "metrics.json").exists() == (script == "evaluate.py")
    assert run_folder.load_network(tmp_path)[1]["epoch"] == 1


@pytest.mark.parametrize("theirs", [None, "0"])
def test_the_scripts_turn_onednn_on_unless_their_user_sets_it(theirs, tmp_path, monkeypatch):
    """Asked of a script's own process, at the moment in which it loads Keras."""
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    (tmp_path / "keras.py").write_text(
        "import os\nraise ImportError('oneDNN is ' + os.environ['TF_ENABLE_ONEDNN_OPTS'])\n", encoding="utf-8"
    )
    environment = {"PYTHONPATH": str(tmp_path)} | ({"TF_ENABLE_ONEDNN_OPTS": theirs} if theirs else {})
    scripts = "train.py", "evaluate.py", "visualize.py", "predict.py", "demo/draw.py", "experiments.second_task.pulls"
    for script in scripts:
        said = run_script(script, "--help", **environment).stderr
        assert f": oneDNN is {theirs or 1}: install" in said, script


@linux
def test_without_a_temporary_folder_it_ends_in_one_line(tmp_path):
    """No file may hold a byte, as on a full disk, so Python finds no folder for its temporary ones."""
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"evaluate.py: No usable temporary directory .*: name a folder .* with TMPDIR\n", done.stderr)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "visualize.py", "predict.py"])
def test_a_safe_path_does_not_hide_the_project(script, tmp_path):
    """PYTHONSAFEPATH leaves a script's own folder out of the places in which Python looks; it gets as far as Keras."""
    (tmp_path / "keras.py").write_text("raise ImportError('so far')\n", encoding="utf-8")
    done = run_script(script, "--help", PYTHONSAFEPATH="1", PYTHONPATH=str(tmp_path))
    assert done.stderr.startswith(f"{script}: so far: install what requirements.txt names")


def test_a_backend_that_cannot_train_is_named():
    done = run_script("evaluate.py", "--help", KERAS_BACKEND="numpy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "evaluate.py: Keras' backend numpy cannot train: set KERAS_BACKEND to one of tensorflow, jax, torch"
    )


@pytest.mark.parametrize(
    ("script", "package"),
    [
        ("experiments.second_task.runs", "psutil"),
        ("experiments.second_task.answer", "pandas"),
        ("experiments.second_task.pulls", "distributed"),
        ("experiments.authors_program.ours", "pandas"),
        ("experiments.authors_program.comparison", "scipy"),
        ("demo.draw", "gradio"),
    ],
)
def test_a_missing_package_of_a_folder_is_named(script, package):
    code = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['it', '--help']; "
    code += f"runpy.run_module({script!r}, run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    folder, *_, name = script.split(".")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{name}.py: no {package} here: install what {folder}/requirements.txt names, for ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["numpy", "matplotlib", "keras"])
def test_a_missing_package_ends_in_one_line(package, tmp_path):
    (tmp_path / f"{package}.py").write_text(
        f'raise ModuleNotFoundError("No module named {package!r}")\n', encoding="utf-8"
    )
    done = run_script("visualize.py", "--output-dir", tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        rf"visualize.py: No module named '{package}': install what requirements.txt names, .*\n", done.stderr
    )


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_missing_backend_is_named(backend, tmp_path):
    (tmp_path / f"{backend}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{backend}'\", name={backend!r})\n", encoding="utf-8"
    )
    done = run_script("evaluate.py", "--help", PYTHONPATH=str(tmp_path), KERAS_BACKEND=backend)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"evaluate.py: No module named '{backend}': KERAS_BACKEND asks for it"
    )
    assert "requirements.txt" not in done.stderr


def test_an_older_keras_is_refused(tmp_path):
    """Up to 3.14 Keras gives the metrics of this network to the wrong outputs."""
    assert (
        f"keras=={'.'.join(map(str, quiet.OLDEST_KERAS))}"
        in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    )
    backend = "backend = types.SimpleNamespace(backend=lambda: 'tensorflow')"
    (tmp_path / "keras.py").write_text(f"import types\n__version__ = '3.14.0'\n{backend}\n", encoding="utf-8")
    done = run_script("train.py", "--output-dir", tmp_path / "run", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"train.py: this is Keras 3.14.0, which .*: install what requirements.txt names, .*\n", done.stderr
    )


@linux
@pytest.mark.parametrize("command", ["python", sys.executable])
def test_the_next_command_takes_the_python_that_runs(command, monkeypatch):
    """Its name where the environment is active, else its path."""
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix if command == "python" else "/another")
    assert cli.next_command("evaluate.py", cli.OUTPUT_DIR) == f"{command} evaluate.py"


def test_out_of_memory_is_one_line(capsys):
    for error in (MemoryError(), MemoryError("Unable to allocate 40. GiB")):

        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as stop:
            cli.start(main)
        assert stop.value.code == 1
        assert capsys.readouterr().err.endswith(f": {str(error) or 'out of memory'}\n")


@linux
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: ARMv7 Processor rev 4 (v7l)\nprocessor\t: 1\n", "ARMv7 Processor rev 4 (v7l)"),
        ("model\t\t: 1\nmodel name\t: A\ncpu family\t: 2\n", "A, family 2, model 1"),
    ],
)
def test_processors_without_a_family(text, name, monkeypatch):
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **more: text if path == Path("/proc/cpuinfo") else read_text(path, **more)
    )
    assert environment.processor() == name


@linux
def test_only_a_lock_that_is_held_says_so(tmp_path, monkeypatch):
    """ENOLCK is the answer of a file system without locks; there the program goes on without them."""

    def fail(number):
        def flock(file, how):
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(files.fcntl, "flock", fail(errno.EWOULDBLOCK))
    with pytest.raises(InputError, match=r"^another train.py is at work"), files.locked(tmp_path / ".lock", "train.py"):
        pass
    monkeypatch.setattr(files.fcntl, "flock", fail(errno.ENOLCK))
    with files.locked(tmp_path / ".lock", "train.py"):
        files.write_json(tmp_path / "whole.json", {})
    assert (tmp_path / "whole.json").exists()


@linux
def test_a_file_system_that_syncs_no_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def fsync_files_only(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(number)

    monkeypatch.setattr(os, "fsync", fsync_files_only)
    files.write_json(tmp_path / "whole.json", {})
    assert (tmp_path / "whole.json").exists()


def test_a_file_that_a_reader_holds_open_on_windows(tmp_path, monkeypatch):
    replace, tries = os.replace, []

    def replace_later(old, new):
        tries.append(new)
        if len(tries) < 4:
            raise PermissionError(errno.EACCES, "in use")
        replace(old, new)

    monkeypatch.setattr(os, "replace", replace_later)
    files.write_json(tmp_path / "whole.json", {})
    assert len(tries) == 4
    assert (tmp_path / "whole.json").exists()


def test_a_folder_that_begins_with_a_dash_can_be_gone_on_with():
    said = cli.next_command("evaluate.py", Path("-x"), Path("--data.npz"))
    assert said.endswith("evaluate.py --output-dir=-x --data=--data.npz")
    args = cli.ArgumentParser("", data_help="MNIST").parse_args(shlex.split(said)[2:])
    assert (args.output_dir, args.data) == (Path("-x"), Path("--data.npz"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("classification_accuracy", 1.0),  # a real case: few test images, and all of them right
        ("classification_accuracy", float("nan")),
        *(("autoencoder_loss", value) for value in (0.0, -1.0, float("nan"), float("inf"), 1e300)),
    ],
)
def test_a_history_that_no_logarithm_can_show(column, value):
    names = ("classification_loss", "autoencoder_loss", "classification_accuracy")
    row = {prefix + name: value if name == column else 0.5 for prefix in ("", "val_") for name in names}
    for article in (None, 0.9933):
        figure = visualize.draw_training(
            {name: [value, value] for name, value in row.items()}, LOSS_WEIGHTS, "A run", article
        )
        figure.savefig(io.BytesIO())
        empty = ["none in any epoch" in {text.get_text() for text in axes.texts} for axes in figure.axes]
        assert empty == [name == column for name in names]
