"""An impossible command line is refused before anything is written."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Annotated

from research.config import Config, options_that_differ, parse
from research.errors import InputError
from research.help import explanations
from research.verbs import VERBS

import pytest
import tyro
from conftest import EXPERIMENTS, REPOSITORY, RunHere

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("option", ["--run-dir", "--data", "--fork", "--resume"])
def test_paths_that_are_not_utf8_are_refused(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: RunHere
) -> None:
    result = run_here(EXPERIMENTS / "mnist_cnn.py", option, NOT_UTF8)
    assert result.status == 2
    assert result.stderr.startswith(rf"error: {option} caf\udce9: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_paths_that_the_locale_reads_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert parse(Config, ["--run-dir", name]).run_dir == Path(name)
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("latin-1"))
    with pytest.raises(InputError, match="or set LC_ALL"):
        parse(Config, ["--run-dir", name])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Config):
    """Options that are listed, or on by default."""

    learning_rate: float = 0.5
    mirror: bool = True
    """Whether to mirror."""
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1])
    """Sizes."""


def test_the_options_that_differ_give_the_same_configuration() -> None:
    assert options_that_differ(Own()) == options_that_differ(Own(seed=3, run_dir=Path("x"))) == []
    changed = Own(
        epochs=2.0,
        learning_rate=1 / 3,
        clip_norm=1e-7,
        eager=True,
        mirror=False,
        profile=(100, 120),
        data=Path("two words"),
        sizes=[2, 3],
    )
    words = options_that_differ(changed)
    assert words[0] == "--epochs 2"
    assert parse(Own, [word for option in words for word in shlex.split(option)]) == changed


def test_a_working_directory_that_can_not_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"the working directory .*not UTF-8"):
        parse(Config, [])
    folder.rmdir()
    with pytest.raises(InputError, match=r"the working directory can't be used \(No such file"):
        parse(Config, ["--run-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("arguments", [[], ["judge", "x"]])
def test_without_a_verb_the_verbs_are_named(arguments: list[str], run_here: RunHere) -> None:
    result = run_here("research", *arguments)
    assert result.status == 2
    assert result.stderr.count("\n") == 1
    for words in ("error: ", ", ".join(VERBS), *arguments[:1]):
        assert words in result.stderr


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("research evalute RUN", "evalute: no such verb; did you mean evaluate? "),
        ("research evalute --help", "evalute: no such verb; did you mean evaluate? "),
        ("research evaluate --jsn RUN", "--jsn: no such option; did you mean --json? "),
        ("research verify x.py --alpha 1", "--alpha: no such option; options of the experiment "),
        ("mixup.py --learnig-rate 3", "--learnig-rate: no such option; did you mean --learning-"),
        ("mixup.py --alhpa=3", "--alhpa: no such option; did you mean --alpha? "),
        ("mixup.py --xyz", "--xyz: no such option (--help explains "),
    ],
)
def test_a_misspelt_verb_or_option_is_named_with_the_one_that_was_meant(
    command: str, refused: str, run_here: RunHere
) -> None:
    program, *words = command.split()
    result = run_here(EXPERIMENTS / program if program != "research" else program, *words)
    assert result.status == 2
    assert result.stderr.startswith(f"error: {refused}"), result.stderr
    assert result.stderr.count("\n") == 1


def help_of(program: str | Path, *words: str, columns: int, run_here: RunHere) -> str:
    """What --help prints, checked to fit into the columns."""
    result = run_here(program, *words, "--help", columns=columns)
    assert (result.status, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert "…" not in result.stdout
    return result.stdout


def joined(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_shows_a_line_and_an_example_of_each_verb(columns: int, run_here: RunHere) -> None:
    shown = joined(help_of("research", columns=columns, run_here=run_here))
    for name, verb in VERBS.items():
        line, example = str(verb.__doc__).split("\n\n")[:2]
        assert f"{name} {joined(line)} {joined(example)}" in shown
        assert joined(example).startswith(f"python -m research {name}")


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_is_whole_and_shows_nothing_internal(
    name: str, columns: int, run_here: RunHere
) -> None:
    shown = joined(help_of("research", name, columns=columns, run_here=run_here))
    assert joined(str(VERBS[name].__doc__)) in shown
    texts = explanations(VERBS[name])
    for field in dataclasses.fields(VERBS[name]):
        assert (joined(texts[field.name]) in shown) == (field.name not in ("options", "serve"))
    for word in ("None", "MISSING", "--serve", str(REPOSITORY)):
        assert word not in shown


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_of_an_experiment_shows_all_its_options_in_groups(
    columns: int, run_here: RunHere
) -> None:
    lines = help_of(EXPERIMENTS / "best.py", columns=columns, run_here=run_here).splitlines()
    first = {"this experiment": "dense-width", "training": "epochs", "data": "data"}
    first |= {"recording": "run-dir", "going on": "resume"}
    assert [line for line in lines if line in first] == list(first)
    for title, option in first.items():
        assert lines[lines.index(title) + 1].startswith(f"  --{option} ")
    shown, texts = joined("\n".join(lines)), explanations(Config)
    for field in dataclasses.fields(Config):
        assert f" --{field.name.replace('_', '-')} " in shown
        assert texts[field.name] in shown
    assert "fractions allowed. Default: 18. --batch-size INT" in shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare(Config):
    """A configuration without options of its own, and without one that all have."""

    warmup_epochs: Annotated[float, tyro.conf.Suppress] = 0.0


def test_help_leaves_out_empty_groups_and_suppressed_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Bare, ["--help"], "About.")
    shown = capsys.readouterr().out
    assert not stop.value.code
    assert "this experiment" not in shown and "--warmup-epochs" not in shown
    assert "\ntraining\n  --epochs FLOAT " in shown


def test_help_shows_the_options_of_a_run_that_goes_on(
    finished_run: Path, run_here: RunHere
) -> None:
    result = run_here(EXPERIMENTS / "mnist_cnn.py", "--resume", finished_run, "--help")
    assert "fractions allowed. Default: 3.0." in joined(result.stdout)
