"""Uncommitted changes become a bounded patch that git applies, under any git configuration."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from research.recording import source as source_module
from research.recording.source import uncommitted_changes

import pytest

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b")
# Git's own programs must not see the hostile settings when a test makes or checks a repository.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}


def git(*arguments: str, cwd: Path, stdin: bytes | None = None) -> bytes:
    command = ["git", *IDENTITY, *arguments]
    return subprocess.run(
        command, cwd=cwd, input=stdin, check=True, capture_output=True, env=CLEAN
    ).stdout


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def repository(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    git("init", "-q", cwd=folder)
    write(folder, files)
    if files:
        git("add", "-A", cwd=folder)
        git("commit", "-qm", "start", cwd=folder)
    return folder


def content(folder: Path, git_files: bool = False) -> dict[str, tuple[bool, bytes]]:
    """The files below a folder: each one's executable bit, and its bytes or its link's target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink():
            found[str(name)] = False, os.fsencode(path.readlink())
        elif path.is_file() and (git_files or name.parts[0] != ".git"):
            found[str(name)] = bool(path.stat().st_mode & 0o100), path.read_bytes()
    return found


def applied(source: Path, patch: bytes, clone: Path) -> dict[str, tuple[bool, bytes]]:
    """The content of a fresh clone of ``source`` after the patch has been applied."""
    git("clone", "-q", str(source), str(clone), cwd=source.parent)
    git("apply", "--whitespace=nowarn", "-", cwd=clone, stdin=patch)
    return content(clone)


COMMITTED = {
    ".gitattributes": b"*.py diff=d\n",
    "research/seeds.py": b"a\nb\n\nc\n",
    "research/deep/er.py": b"x = 1\n",
    "bytes": bytes(range(256)),
    "deleted.py": b"gone\n",
    "deleted bytes": bytes(100),
    "renamed.py": b"".join(b"line %d\n" % n for n in range(50)),
    "run.sh": b"true\n",
    "crlf.txt": b"a\r\nb\r\n",
    "--committed": b"1\n",
    "becomes a folder": b"1\n",
    "folder/becomes a file": b"1\n",
    "becomes a link": b"1\n",
    "hidden.py": b"1\n",
    "-text": b"the same size\n",
}


def edit(folder: Path) -> None:
    """Changes of every kind that a patch can hold."""
    write(
        folder,
        {
            "research/seeds.py": b"a\nB\n\nc\nno newline",
            "research/deep/er.py": b"x = 2\n",
            "bytes": bytes(range(255, 0, -1)),
            "crlf.txt": b"a\r\nc\r\n\n",
            "--committed": b"2\n",
            "hidden.py": b"2\n",
            "-text": b"another  size\n",
            "new/one with blanks.py": b"print()\n",
            "--output=research/seeds.py": b"an option?\n",
            "-": b"standard input?\n",
            'odd "\\\n\t\x7f\u00e4\u20ac': b"odd\r\n \xff\n\n",
            ":(exclude)*": b"pathspec\n",
            "empty.py": b"",
            "only newline": b"\n",
            "staged.py": b"staged\n",
        },
    )
    (folder / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"1")
    (folder / "run.sh").chmod(0o755)
    (folder / "deleted.py").unlink()
    (folder / "deleted bytes").unlink()
    (folder / "renamed.py").rename(folder / "renamed to.py")
    (folder / "becomes a folder").unlink()
    write(folder, {"becomes a folder/file.py": b"1\n"})
    (folder / "folder" / "becomes a file").unlink()
    (folder / "folder").rmdir()
    (folder / "folder").write_bytes(b"2\n")
    (folder / "becomes a link").unlink()
    (folder / "becomes a link").symlink_to("/nowhere/to be found")
    (folder / "new link").symlink_to("research")
    git("add", "staged.py", cwd=folder)
    git("rm", "-q", "--cached", "research/deep/er.py", cwd=folder)
    git("update-index", "--assume-unchanged", "hidden.py", cwd=folder)


HOSTILE = [
    {},
    {"diff.noprefix": "true", "diff.mnemonicPrefix": "true", "diff.relative": "true"},
    {"diff.srcPrefix": "x/", "diff.dstPrefix": "y/", "core.quotePath": "false"},
    {"diff.external": "TRAP", "diff.d.command": "TRAP", "diff.d.textconv": "TRAP"},
    {"core.fsmonitor": "TRAP", "core.hooksPath": "HOOKS", "core.pager": "TRAP"},
    {"core.attributesFile": "ATTRIBUTES", "diff.d.textconv": "TRAP", "filter.f.clean": "TRAP"},
    {"color.ui": "always", "color.diff": "always", "diff.colorMoved": "zebra"},
    {"diff.renames": "copies", "diff.orderFile": "/nowhere", "diff.algorithm": "patience"},
    {"diff.context": "0", "diff.interHunkContext": "9", "diff.suppressBlankEmpty": "true"},
    {"core.autocrlf": "true", "core.safecrlf": "true"},
    {"core.autocrlf": "input", "core.eol": "crlf", "core.safecrlf": "true"},
    {"diff.submodule": "log", "diff.ignoreSubmodules": "all", "submodule.recurse": "true"},
    {"diff.autoRefreshIndex": "false", "core.untrackedCache": "true", "index.threads": "1"},
    {"core.bigFileThreshold": "1", "core.abbrev": "4", "diff.wsErrorHighlight": "all"},
    {"status.showUntrackedFiles": "no", "diff.statNameWidth": "1", "core.whitespace": "cr-at-eol"},
]


@pytest.mark.parametrize("settings", HOSTILE, ids=lambda settings: " ".join(settings) or "none")
def test_the_patch_makes_the_very_same_files_and_nothing_is_written(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository(tmp_path / "source", COMMITTED)
    edit(source)
    trap, sprung = tmp_path / "trap", tmp_path / "sprung"
    trap.write_text(f"#!/bin/sh\ntouch '{sprung}'\ncat\n")
    trap.chmod(0o755)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "post-index-change").symlink_to(trap)
    (tmp_path / "attributes").write_text("*.py diff=d filter=f\n* text=auto\n-text -diff\n")
    places = {"TRAP": trap, "HOOKS": tmp_path / "hooks", "ATTRIBUTES": tmp_path / "attributes"}
    settings = {key: str(places.get(value, value)) for key, value in settings.items()}
    for key, value in settings.items():  # a repository's own settings win over the user's
        git("config", key, value, cwd=source)
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
    for n, (key, value) in enumerate(settings.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{n}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{n}", value)
    before = content(source, git_files=True)
    patch = uncommitted_changes(source / "research" / "seeds.py")
    assert content(source, git_files=True) == before
    assert not sprung.exists()
    assert uncommitted_changes(source / "empty.py") == patch
    assert applied(source, patch, tmp_path / "clone") == content(source)


VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_EXTERNAL_DIFF"),
    *("GIT_DIFF_OPTS", "GIT_PREFIX", "GIT_CONFIG_GLOBAL", "GIT_TEST_ASSUME_DIFFERENT_OWNER"),
)


def test_git_variables_of_the_environment_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository(tmp_path / "source", COMMITTED)
    edit(source)
    patch = uncommitted_changes(source / "run.sh")
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path))
    assert uncommitted_changes(source / "run.sh") == patch


def test_a_new_index_and_an_attribute_of_the_repository_make_no_difference(tmp_path: Path) -> None:
    attributes = {".gitattributes": b"*.md text eol=crlf\n*.py diff=python\n*.py ident\n"}
    source = repository(tmp_path / "source", COMMITTED | attributes | {"a.md": b"a\r\nb\r\n"})
    for name in COMMITTED:
        os.utime(source / name, (1e9, 1e9))  # as in a copy: the index holds other times
    assert uncommitted_changes(source / "bytes") == b""
    write(source, {"a.md": b"a\r\nc\r\n", "new.md": b"1\r\n", "run.sh": b"false\n"})
    patch = uncommitted_changes(source / "bytes")
    assert patch.count(b"diff --git") == 3
    assert applied(source, patch, tmp_path / "clone") == content(source)


def test_in_a_repository_without_a_commit_every_file_is_new(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {})
    write(source, {"staged.py": b"1\n", "new.py": b"2\n"})
    git("add", "staged.py", cwd=source)
    patch = uncommitted_changes(source / "new.py")
    assert applied(source, patch, tmp_path / "clone") == content(source)


def test_files_in_conflict_are_recorded_as_they_are(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"a.py": b"1\n"})
    git("checkout", "-qb", "other", cwd=source)
    write(source, {"a.py": b"2\n"})
    git("commit", "-qam", "other", cwd=source)
    git("checkout", "-q", "-", cwd=source)
    write(source, {"a.py": b"3\n"})
    git("commit", "-qam", "here", cwd=source)
    with pytest.raises(subprocess.CalledProcessError):
        git("merge", "-q", "other", cwd=source)
    patch = uncommitted_changes(source / "a.py")
    assert b"<<<<<<<" in (source / "a.py").read_bytes()
    assert applied(source, patch, tmp_path / "clone") == content(source)


def test_there_is_nothing_to_say_outside_a_repository_and_where_all_is_committed(
    tmp_path: Path,
) -> None:
    source = repository(tmp_path / "source", COMMITTED)
    assert uncommitted_changes(source / "run.sh") == b""
    assert uncommitted_changes(tmp_path / "no repository") == b""
    assert uncommitted_changes(tmp_path / "nowhere" / "file") == b""


@pytest.mark.parametrize("damage", ["index", "HEAD", "no git"])
def test_where_git_can_not_tell_the_reason_is_recorded(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository(tmp_path / "source", COMMITTED)
    if damage == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (source / ".git" / damage).write_bytes(b"damaged")
    told = uncommitted_changes(source / "run.sh")
    assert told.startswith(b"# What is not committed is unknown (")
    assert told.count(b"\n") == 1


def left_out(patch: bytes) -> dict[str, str]:
    """The reason by name, from the comment lines in front of a patch."""
    lines = patch.split(b"diff --git ")[0].decode().splitlines()
    return dict(line.removeprefix("#   ").split(": ", 1) for line in lines if ": " in line)


def test_large_binary_and_other_files_are_listed_and_the_rest_is_applied(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", COMMITTED | {"large.txt": b"x\n" * 600_000})
    large = b"digits\n" * 200_000
    write(source, {"run.sh": large, "new\nlarge": large, "new bytes": bytes(9), "new.py": b"1\n"})
    write(source, {"large.txt": b"small now\n"})
    (source / "bytes").unlink()
    os.mkfifo(source / "bytes")
    with (source / "huge").open("wb") as sparse:
        sparse.truncate(10 << 30)
    git("init", "-q", "nested", cwd=source)
    write(source / "nested", {"file.py": b"1\n"})
    patch = uncommitted_changes(source / "run.sh")
    digest = hashlib.sha256(large).hexdigest()
    assert left_out(patch) == {
        "run.sh": f"it has more than 1048576 bytes, 1400000 bytes, SHA-256 {digest}",
        '"new\\012large"': f"it has more than 1048576 bytes, 1400000 bytes, SHA-256 {digest}",
        '"new bytes"': f"new and binary, 9 bytes, SHA-256 {hashlib.sha256(bytes(9)).hexdigest()}",
        "large.txt": "it had more than 1048576 bytes, 10 bytes, SHA-256 "
        + hashlib.sha256(b"small now\n").hexdigest(),
        "bytes": "it is a FIFO, not a file",
        "huge": "it has more than 1048576 bytes, 10737418240 bytes, no digest",
        "nested/": "a git repository of its own",
    }
    assert applied(source, patch, tmp_path / "clone")["new.py"] == (False, b"1\n")
    assert len(patch) < 2000


def test_a_large_file_that_is_only_touched_has_not_changed(tmp_path: Path) -> None:
    source = repository(tmp_path / "source", {"large.txt": b"x\n" * 600_000})
    os.utime(source / "large.txt", (1e9, 1e9))
    assert uncommitted_changes(source / "large.txt") == b""


def test_a_full_patch_holds_python_first_and_says_how_much_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository(tmp_path / "source", {"a.txt": b"1\n", "gone": b"1\n"})
    write(source, {f"data/{n}.txt": b"%d\n" % n for n in range(30)})
    write(source, {"experiments/new.py": b"1\n", "a.txt": b"2\n"})
    (source / "gone").unlink()
    monkeypatch.setattr(source_module, "MOST_FILES", 4)
    monkeypatch.setattr(source_module, "MOST_LISTED", 5)
    patch = uncommitted_changes(source / "a.txt")
    for name in (b"a.txt", b"gone", b"experiments/new.py", b"data/0.txt"):
        assert b"diff --git a/%s b/%s\n" % (name, name) in patch
    assert len(left_out(patch)) == 5
    assert b"#   and 24 more\n" in patch
    monkeypatch.setattr(source_module, "LARGEST_PATCH", 3)
    assert set(left_out(uncommitted_changes(source / "a.txt"))) >= {"gone", "experiments/new.py"}


@pytest.mark.parametrize(
    ("marker", "text", "recorded"),
    [
        ("config.json", json.dumps({"experiment": "mnist_cnn", "run": "0"}), False),
        ("pyvenv.cfg", "", False),
        ("config.json", json.dumps({"experiment": "mnist_cnn"}), True),
        ("config.json", "damaged", True),
        ("config.json", "[]", True),
    ],
)
def test_run_directories_and_virtual_environments_are_no_source(
    marker: str, text: str, recorded: bool, tmp_path: Path
) -> None:
    source = repository(tmp_path / "source", {"a.py": b"1\n"})
    write(source, {f"out/{marker}": text.encode(), "out/train/events": b"1\n", "out/x.py": b"\n"})
    assert (b"out/x.py" in uncommitted_changes(source / "a.py")) == recorded
    # The root of the repository itself is never treated as one.
    write(source, {marker: text.encode(), "new.py": b"1\n"})
    assert b"b/new.py" in uncommitted_changes(source / "a.py")


def test_another_user_s_repository_is_recorded_too(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    source = repository(tmp_path / "source", {"a.py": b"1\n"})
    write(source, {"a.py": b"2\n"})
    for path in (source, source / ".git"):
        os.chown(path, 12345, 12345)
    assert b"+2\n" in uncommitted_changes(source / "a.py")


def test_it_works_in_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository(tmp_path / "source", {"a.py": b"1\n"})
    write(source, {"a.py": b"2\n"})
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert b"+2\n" in uncommitted_changes(source / "a.py")
    assert uncommitted_changes(Path("a.py")).startswith(b"# What is not committed is unknown")
