"""README.md, and those of the folders, agree with the program."""

from __future__ import annotations

import dataclasses
import json
import re
from fnmatch import fnmatch
from pathlib import Path

from research.network.mnist_cnn import Config
from research.recording.tags import TAGS, description

from conftest import EXPERIMENTS, REPOSITORY, RunHere
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

README = (REPOSITORY / "README.md").read_text()
README_OF_EXPERIMENTS, README_OF_RESEARCH, README_OF_RUNS = (
    (REPOSITORY / folder / "README.md").read_text()
    for folder in ("experiments", "research", "runs")
)


def table(heading: str, text: str) -> list[list[str]]:
    """The rows of all tables below a heading, without the tables' own headings."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    heads = [n - 1 for n, row in enumerate(cells) if set(row[0]) == {"-"}]
    return [row for n, row in enumerate(cells) if n not in heads and n - 1 not in heads]


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len(README.split()) <= 1200


def test_what_the_pages_link_to_is_there() -> None:
    for page in (REPOSITORY / "README.md", *REPOSITORY.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_table_of_options_is_complete() -> None:
    documented = {row[0].strip("`"): row[1] for row in table("Options", README_OF_EXPERIMENTS)}
    actual = {}
    for field in dataclasses.fields(Config):
        default = field.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        actual["--" + field.name.replace("_", "-")] = shown
    assert documented == actual


def test_the_glossary_is_complete(finished_run: Path) -> None:
    documented = {
        (re.sub(r"<\w+>", "[^/]+", row[0].strip("`")), folder)
        for row in table("Tags", README_OF_RUNS)
        for folder in row[1].split(", ")
    }
    rows = [(t.name, ", ".join(t.folders), t.unit, t.meaning) for t in TAGS]
    assert [tuple(row) for row in table("Tags", README_OF_RUNS)] == [
        (f"`{name}`", *rest) for name, *rest in rows
    ]
    there = set()
    for folder in ("run", "train", "validation", "test"):
        path = finished_run / ("" if folder == "run" else folder)
        events = EventAccumulator(str(path), size_guidance={"tensors": 0})
        events.Reload()
        there |= {(tag, folder) for tag in events.Tags()["tensors"]}
        for tag in events.Tags()["tensors"]:  # the browser shows the same line
            shown = events.SummaryMetadata(tag).summary_description
            assert shown == description(tag) != ""
    found = set()
    for tag, folder in there:
        (match,) = (key for key in documented if key[1] == folder and re.fullmatch(key[0], tag))
        found.add(match)
    elsewhere = {"optimizer/loss_scale", "objective", "loss_harder", "loss_nearby"}
    elsewhere |= {"robust_accuracy", "corrupted_accuracy"}
    assert {(tag, folder) for tag, folder in documented if tag not in elsewhere} == found


def test_the_table_of_files_is_complete(finished_run: Path) -> None:
    cells = " ".join(row[0] for row in table("Files", README_OF_RUNS))
    names = [name.rstrip("/") for name in re.findall(r"`([^`]+)`", cells)]
    documented = [re.sub(r"<\w+>", "*", name) for name in names]
    sometimes = {"uncommitted.diff", "plugins", "replay-step-00000007", "metrics.damaged"}
    sometimes |= {"non_finite.json"}
    there = {path.name for path in finished_run.iterdir()} | sometimes
    assert all(any(fnmatch(name, pattern) for pattern in documented) for name in there)
    assert all(any(fnmatch(name, pattern) for name in there) for pattern in documented)


def test_the_form_of_evaluation_json_is_documented(finished_run: Path) -> None:
    found = json.loads((finished_run / "evaluation.json").read_text())
    (form,) = re.findall(r"`(\{[^`]+\})`", README_OF_RUNS)
    # finished_run has both --holdout and --test.
    assert set(re.findall(r'"(\w+)"', form)) | {"holdout"} == found.keys()


def test_the_worked_example_works(data_file: Path, tmp_path: Path, run_here: RunHere) -> None:
    example = README.split("```python\n")[1].split("```")[0]
    reference = (EXPERIMENTS / "mnist_cnn.py").read_text()
    changed, count = re.subn(
        r"def step\(.*?\n\n\n", lambda match: example + "\n\n", reference, flags=re.DOTALL
    )
    assert count == 1
    (tmp_path / "harder_half.py").write_text(changed)
    options = ("--data", data_file, "--epochs", "1", "--run-dir", "run")
    assert run_here(tmp_path / "harder_half.py", *options).status == 0
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss_harder"] > first["loss"]


def test_the_example_of_figures_and_a_loop_works(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    example = README_OF_RESEARCH.split("```python\n")[1].split("```")[0]
    reference = (EXPERIMENTS / "mnist_cnn.py").read_text()
    imports = (
        "import numpy as np\n"
        "from research.data.dataset import Split\n"
        "from research.loop import Training\n\n\n"
        "def build("
    )
    changed, count = re.subn(
        r"^experiment = .*\n", lambda match: example, reference, flags=re.MULTILINE
    )
    assert count == 1
    (tmp_path / "changed.py").write_text(changed.replace("def build(", imports))
    options = ("--data", data_file, "--dense-width", "16", "--epochs", "3", "--run-dir", "run")
    assert run_here(tmp_path / "changed.py", *options).status == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    validations = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validations] == [6]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for figures in (validations[0], evaluation["test"]):
        assert 0 <= figures["worst_recall"] <= figures["accuracy"]


def test_the_commands_at_the_top_are_what_ci_runs() -> None:
    look, first, second = re.findall(r"^    (pip .*)$", README, re.MULTILINE)[:3]
    assert look == f"{first} --examples 6000 --epochs 2"
    assert first == "pip install -e . && python experiments/mnist_cnn.py"
    assert second in (REPOSITORY / ".ci" / "run").read_text()
