"""The pages: their tables are what the programs print, their commands and links exist. Prose is free."""

import importlib
import json
import re
from pathlib import Path

import pandas
import pytest
from conftest import REFERENCE, ROOT, STUDY, metrics

import evaluate
from benchmarks import step_time, throughput
from experiments.authors_program import comparison
from experiments.second_task import answer, pulls

WITH_TABLES = ("faithful", "results", "second_task", "second_task_details", "speed")
PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def records(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study():
    """The rows of the recorded study, and their comparisons."""
    rows = answer.load(STUDY)
    return rows, answer.comparisons(rows)


@pytest.fixture(scope="module")
def printed(study):
    """What the programs print, by the pages that show it."""
    tables = answer.tables(*study)
    speeds = []
    for name in ("throughput.json", "throughput_five_ways.json"):
        benchmark = records(REFERENCE, name)
        rounds = throughput.summarise_rounds(benchmark["rounds"])
        assert {name: benchmark[name] for name in rounds} == rounds
        speeds.append("\n".join(["```text", *throughput.report(rounds), "```"]))
    results = tables["results"].splitlines()
    originals = (comparison.read(REFERENCE / "original" / name) for name in ("runs.csv", "ours.csv"))
    return {
        "README.md": ["\n".join(line for line in results if "epochs 11" not in line)],
        "docs/faithful.md": [*comparison.tables(comparison.summarise(*originals)).values()],
        "docs/results.md": [
            tables["results"],
            "\n".join(["```text", *evaluate.report(metrics(REFERENCE))[:5], "```"]),
        ],
        "docs/second_task.md": [tables[name] for name in ("answers", "few labels", "probabilities")],
        "docs/second_task_details.md": [
            *(tables[name] for name in ("B", "C2", "E", "calibration", "F")),
            *pulls.tables(*(pandas.read_csv(STUDY / name) for name in (pulls.CSV, pulls.CSV_RECORDED))),
            "\n".join(["```text", step_time.report(records(STUDY, "step_time.json")), "```"]),
        ],
        "docs/speed.md": speeds,
    }


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}.md" for name in WITH_TABLES)])
def test_tables_are_what_the_programs_print(name, printed):
    missing = [text for text in printed[name] if text not in read(name)]
    assert not missing, "\n\n".join(missing)


def test_what_was_measured_on_a_gpu_is_what_is_recorded():
    """The program that made gpu.json is gone, as its question is answered; each of its lines is held against it."""
    recorded = records(REFERENCE, "gpu.json")
    lines = re.findall(r"(?m)^((?:jax|torch): .*?)  +(.*)$", read("docs/speed.md"))
    assert [name for name, _ in lines] == [*recorded]
    for name, said in lines:
        found = recorded[name]
        if "parity" in name:
            kinds = re.findall(r"([a-z ]+) (\d\S+?)(?:,|$)", said.partition(": ")[2])
            assert {kind.strip(): float(value) for kind, value in kinds} == {
                kind: float(f"{found[kind]:.1e}") for kind in ("outputs before", "losses", "weights", "outputs after")
            }
        elif "study" in name:
            assert said == (f"NaN in step {found['nan_in_step']}" if found["nan_in_step"] else "finite")
        elif found.get("broken"):
            assert said == found["broken"]
        else:
            text = "epoch {epoch}, {seconds:.0f} s, {val_classification_accuracy:.2%}, {images_per_second:.0f} images/s"
            assert said == text.format(**found)


def test_the_notebook_lines_of_usage_run(small_data, monkeypatch):
    """On little data and without learning, so that the loss never falls: the loop ends after epoch 4."""
    blocks = re.findall(r"```python\n(.*?)```", read("docs/usage.md"), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(ROOT)
    scope = {}
    code = "".join(blocks).replace("load_data()", f"load_data({str(small_data)!r})")
    code = code.replace("new_model(seed=0)\n", "new_model(seed=0)\nmodel.optimizer.learning_rate = 0.0\n")
    exec(code, scope)
    assert scope["history"].epoch == [0, 1, 2, 3]
    assert scope["model"].count_params() == 3_445_323


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read(name)) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_commands_are_ones_that_the_scripts_know(capsys):
    commands = {}  # by script, what the pages give it
    for name in PAGES:
        for script, module, arguments in re.findall(
            r"python (?:((?:\w+/)?\w+)\.py|-m ((?:experiments|benchmarks)[\w.]+))([^\n`#&]*)", read(name)
        ):
            commands.setdefault(module or script.replace("/", "."), set()).update(re.findall(r"--[a-z-]+", arguments))
    assert {"train", "evaluate", "visualize", "benchmarks.throughput", "experiments.second_task.runs"} <= {*commands}
    for module, flags in commands.items():
        main = importlib.import_module(module).main
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["--help"])
        unknown = flags - set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert not unknown, module


def parts_of(page):
    """What a page and its translation share: code without comments, links, names of files and flags, figures."""
    text = read(page).replace(".ja.md", ".md")
    code = [re.sub(r" *# .*", "", block) for block in re.findall(r"```.*?```", text, re.DOTALL)]
    links = {link for link in re.findall(r"\]\(([^)]+)\)", text) if link.endswith((".png", ".md"))}
    names = set(re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    figures = [
        re.findall(r"[-+]?\d[\d.,]*", row.split("|", 2)[2])  # but for the first cell, which names the row
        for row in re.findall(r"(?m)^\|.*\|$", text)
        if "`" not in row
    ]
    return code, links - {Path(page).name.replace(".ja.md", ".md")}, names, figures


@pytest.mark.parametrize("name", ["README.ja.md", "docs/results.ja.md", "docs/usage.ja.md"])
def test_both_pages_say_the_same(name):
    english = name.replace(".ja.md", ".md")
    for other, page in ((english, name), (name, english)):
        assert f"({Path(other).name})" in read(page).split("##")[0]
    for here, there in zip(parts_of(english), parts_of(name)):
        assert here == there
