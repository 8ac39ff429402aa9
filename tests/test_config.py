"""An impossible command line is refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from research.config import Config, parse
from research.errors import InputError

import pytest
from conftest import EXPERIMENTS, RunHere

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


@pytest.mark.parametrize("arguments", [[], ["evalute", "x"]])
def test_without_a_verb_the_verbs_are_named(arguments: list[str], run_here: RunHere) -> None:
    result = run_here("research", *arguments)
    assert result.status == 2
    assert result.stderr.count("\n") == 1
    for words in (
        "error: ",
        "evaluate, predict, verify, compare, runs, diff, rerun, replay, bench, board",
        *arguments,
    ):
        assert words in result.stderr
