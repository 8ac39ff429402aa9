"""The copy of the code that an arm's trainings run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from research.comparing import checkout
from research.comparing.checkout import code_sha256, commit_named, copy_code
from research.comparing.question import Arm
from research.errors import InputError
from research.recording.code import library_sha256
from research.recording.source import commit_of, uncommitted_changes

import pytest
from conftest import contents


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *name, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with two commits and edits that are not committed."""
    root = tmp_path / "project"
    for name in ("research", "experiments"):
        (root / name).mkdir(parents=True)
    (root / "research" / "__init__.py").write_text("")
    (root / "research" / "loss.py").write_text("SCALE = 1\n")
    (root / "experiments" / "one.py").write_text("first = 1\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    (root / "experiments" / "one.py").write_text("second = 2\n")
    git(root, "commit", "--quiet", "-am", "second")
    (root / "research" / "loss.py").write_text("SCALE = 3\n")
    (root / "experiments" / "helper.py").write_text("new = 4\n")
    monkeypatch.setattr(checkout, "PROJECT", root)
    monkeypatch.chdir(root)
    return root


def test_each_arm_runs_the_code_that_it_names(project: Path, tmp_path: Path) -> None:
    before = contents(project)
    arms = [Arm.parse("experiments/one.py"), Arm.parse("HEAD~1:experiments/one.py")]
    commits = [commit_named(arm) for arm in arms]
    now, then = copy_code(arms, commits, tmp_path / "copies")
    assert contents(project) == before

    assert now.file.read_text() == "second = 2\n"
    assert now.file.with_name("helper.py").read_text() == "new = 4\n"
    assert (now.root / "research" / "loss.py").read_text() == "SCALE = 3\n"
    assert now.commit == commit_of(now.file) == git(project, "rev-parse", "HEAD")
    assert uncommitted_changes(now.file) == uncommitted_changes(project / "experiments" / "one.py")

    assert then.file.read_text() == "first = 1\n"
    assert (then.root / "research" / "loss.py").read_text() == "SCALE = 1\n"
    assert then.commit == commit_of(then.file) == git(project, "rev-parse", "HEAD~1")
    assert uncommitted_changes(then.file) == b""


def test_an_experiment_elsewhere_and_a_project_without_git_are_copied(
    project: Path, tmp_path: Path
) -> None:
    (project / ".git").rename(project / "no-git")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text("mine = 5\n")
    (elsewhere / "beside.py").write_text("beside = 6\n")
    (code,) = copy_code([Arm.parse(str(elsewhere / "mine.py"))], [None], tmp_path / "copies")
    assert code.file.read_text() == "mine = 5\n"
    assert code.file.with_name("beside.py").exists()
    assert (code.root / "research" / "loss.py").read_text() == "SCALE = 3\n"
    assert code.commit is None


def test_the_users_git_configuration_decides_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    for name in ("post-checkout", "post-index-change"):
        hook = home / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {home}/ran\n")
        hook.chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n hooksPath = {home}/hooks\n autocrlf = true\n"
        f"[init]\n templateDir = {home}\n[clone]\n rejectShallow = true\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    arm = Arm.parse("HEAD~1:experiments/one.py")
    (code,) = copy_code([arm], [commit_named(arm)], tmp_path / "copies")
    assert code.file.read_bytes() == b"first = 1\n"
    assert not (home / "ran").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope:experiments/one.py", "no commit nope"),
        ("--help:experiments/one.py", "no commit --help"),
        ("HEAD:experiments/two.py", "has no such file"),
        ("HEAD:experiments", "is no file"),
        ("HEAD:../one.py", "can't read it|has no such file"),
    ],
)
def test_a_commit_without_the_file_is_refused(project: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        commit_named(Arm.parse(text))


def test_digests_are_of_what_trainings_import(project: Path) -> None:
    before = library_sha256(project)
    (project / "research" / "tools").mkdir()
    (project / "research" / "tools" / "verb.py").write_text("x = 1\n")
    assert library_sha256(project) == before
    (project / "research" / "loss.py").write_text("SCALE = 4\n")
    assert library_sha256(project) != before

    folder = project / "experiments"
    there = code_sha256(folder, ["one.py"])
    assert there is not None and there.keys() == {"one.py"}
    assert code_sha256(folder, ["gone.py"]) is None
