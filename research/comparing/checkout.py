"""The code of each arm: a copy that its trainings run, whatever is edited meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import research
from research.comparing.question import Arm
from research.errors import InputError, one_line
from research.recording.source import commit_of, git, uncommitted_changes

# The project's root.
PROJECT = Path(research.__file__).parents[1]
NOW = "now"


@dataclasses.dataclass(frozen=True)
class Code:
    """Where the code of an arm is.

    Attributes:
        root: the copy of the project, which holds ``research``.
        file: the experiment's file in the copy.
        commit: the commit of the copy, None outside of git repositories.
    """

    root: Path
    file: Path
    commit: str | None


def commit_named(arm: Arm) -> str | None:
    """The commit that an arm names; None for an arm without a revision.

    Raises:
        InputError: if the project has no such commit, or the commit has no such file.
    """
    if arm.revision is None:
        return None
    file = f"{arm.revision}:{arm.file}"
    try:
        words = ("rev-parse", "--verify", "--quiet", f"{arm.revision}^{{commit}}")
        commit = git(PROJECT, *words).decode().strip()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InputError(
            f"{file}: the project has no commit {arm.revision}; `git log --oneline` lists those "
            "that it has"
        ) from error
    try:
        found = git(PROJECT, "ls-tree", "-z", "--full-tree", commit, str(arm.file))
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{file}: git can't read it ({one_line(error)[:100]})") from error
    about, _, name = found.rstrip(b"\0").partition(b"\t")
    if name != os.fsencode(arm.file):
        raise InputError(
            f"{file}: commit {commit[:12]} has no such file; "
            f"`git ls-tree --name-only {commit[:12]} experiments/` lists experiments"
        )
    if b" blob " not in about:
        raise InputError(f"{file}: in commit {commit[:12]} it is no file; name an experiment")
    return commit


def copy_code(arms: Sequence[Arm], commits: Sequence[str | None], folder: Path) -> list[Code]:
    """Copies the code of all arms into a folder; arms of one commit share a copy.

    An arm with a commit gets a checkout of the whole project. An arm without one gets a checkout of
    the current commit with the uncommitted changes, as they are now.

    Raises:
        InputError: if git fails.
        OSError: if a file can't be copied.
    """
    codes = []
    for arm, commit in zip(arms, commits, strict=True):
        root = folder / (NOW if commit is None else commit[:12])
        if not root.exists():
            if commit is None:
                _copy_current(root)
            else:
                _check_out(commit, root)
        codes.append(_place(arm, commit, root))
    return codes


def _place(arm: Arm, commit: str | None, root: Path) -> Code:
    if commit is not None:
        return Code(root, root / arm.file, commit)
    file = arm.file.resolve()
    if file.is_relative_to(PROJECT):
        target = root / file.relative_to(PROJECT)
    else:
        name = hashlib.sha256(os.fsencode(file.parent)).hexdigest()[:8]
        target = root.parent / f"beside-{name}" / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in {file, *file.parent.glob("*.py")}:
        with contextlib.suppress(FileNotFoundError):  # a link to nowhere beside the experiment
            shutil.copyfile(path, target.with_name(path.name))
    return Code(root, target, _commit(root))


def _copy_current(root: Path) -> None:
    head = _commit(PROJECT)
    root.mkdir(parents=True)
    if head is not None:
        _check_out(head, root)
        patch = uncommitted_changes(PROJECT / "research" / "__init__.py")
        comments = [line for line in patch.splitlines() if line.startswith(b"#")]
        try:
            if len(comments) < len(patch.splitlines()):
                git(root, "apply", "--whitespace=nowarn", "-", given=patch)
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(
                f"{PROJECT}: the uncommitted changes can't be copied ({one_line(error)[:200]}); "
                "commit them"
            ) from error
        if left_out := [line for line in comments if b".py: " in line]:
            what = left_out[0].decode(errors="replace").lstrip("# ")
            raise InputError(
                f"{PROJECT}: an uncommitted change can't be copied ({what}); commit it"
            )
    # Without git there is no patch.
    for path in sorted((PROJECT / "research").rglob("*.py")):
        target = root / path.relative_to(PROJECT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _check_out(commit: str, root: Path) -> None:
    """A checkout that shares the objects of the project's repository and changes nothing there."""
    try:
        objects = git(PROJECT, "rev-parse", "--git-path", "objects").decode().strip()
        form = git(PROJECT, "rev-parse", "--show-object-format").decode().strip()
        root.mkdir(parents=True, exist_ok=True)
        git(root, "init", "--quiet", "--template=", f"--object-format={form}")
        shared = root / ".git" / "objects" / "info" / "alternates"
        shared.parent.mkdir(parents=True, exist_ok=True)
        shared.write_text(f"{(PROJECT / objects).resolve()}\n")
        git(root, "checkout", "--quiet", "--detach", commit)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", b"").decode(errors="replace") or one_line(error)
        raise InputError(
            f"commit {commit[:12]}: git can't check it out ({' '.join(reason.split())[:200]})"
        ) from error


def _commit(folder: Path) -> str | None:
    """The current commit of a folder that is the root of a git repository."""
    return commit_of(folder / "research") if os.path.lexists(folder / ".git") else None


def code_sha256(folder: Path, names: Sequence[str] | None = None) -> dict[str, str] | None:
    """The SHA-256 of an experiment's files, by their names below the experiment's folder.

    Args:
        folder: the experiment's folder, or the folder ``code`` of one of its runs.
        names: the files; None takes all.

    Returns:
        None if a file is missing.
    """
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")]
    try:
        return {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)
        }
    except OSError:
        return None
