"""The uncommitted source code, as a patch for ``git apply`` of bounded size."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from research.errors import one_line
from research.files import open_regular, read_json, read_regular

# A file with more bytes than this, now or in the last commit, is left out of the patch.
LARGEST_FILE = 1 << 20
# The patch is full when its files have LARGEST_PATCH bytes together, now and in the last commit, or
# when it has MOST_FILES files.
LARGEST_PATCH = 16 << 20
MOST_FILES = 500
# At most MOST_LISTED left-out files are listed, and MOST_DIGESTED of their bytes are digested.
MOST_LISTED = 100
MOST_DIGESTED = 64 << 20

# These options override the user's git configuration: `git apply` takes the patch, and git starts
# no program to watch or to show files.
_CONFIGURATION = (
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=" + os.devnull),
    *("-c", "core.attributesFile=" + os.devnull),
    *("-c", "core.autocrlf=false"),
    *("-c", "core.bigFileThreshold=512m"),
    # Git refuses a repository of another user, as in containers. Its code is running anyway.
    *("-c", "safe.directory=*"),
)
_PLAIN_DIFF = (
    *("--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--unified=3"),
    "-O" + os.devnull,
)
_SUBMODULE = 0o160000


@dataclasses.dataclass(frozen=True)
class _Committed:
    """A file in the last commit: its mode, git's digest of its content, its size in bytes."""

    mode: int
    digest: str
    size: int


class _LeftOutError(Exception):
    """The patch can't hold a file; the message is the reason."""


def uncommitted_changes(source: Path) -> bytes:
    """The uncommitted changes in a file's git repository, as a patch for ``git apply``.

    The patch holds changes of tracked files, and new text files and links that git does not ignore.
    Comment lines in front of it, which ``git apply`` skips, list the files that are too large, new
    and binary, or unreadable, with size and SHA-256. Files in run directories and virtual
    environments are left out. Nothing in the repository is written, not even git's index.

    Args:
        source: a file in the repository.

    Returns:
        The patch; empty without changes and outside of a repository. If git fails, a comment with
        the reason.
    """
    try:
        folder = source.parent.resolve()
        if not any(os.path.lexists(place / ".git") for place in (folder, *folder.parents)):
            return b""
        root = Path(os.fsdecode(git(folder, "rev-parse", "--show-toplevel")[:-1]))
        commit = commit_of(source)
        committed = _files_of(root, commit)
        names = _candidates(root, commit)
    except (OSError, subprocess.SubprocessError) as error:
        return f"# What is not committed is unknown ({_reason(error)})\n".encode()

    patches: list[bytes] = []
    left_out: list[bytes] = []
    room, digestible = LARGEST_PATCH, MOST_DIGESTED

    @functools.cache  # a virtual environment has tens of thousands of files
    def made_by_a_program(folder: bytes) -> bool:
        above = folder.rpartition(b"/")[0]
        made = bool(folder) and _is_made_by_a_program(root / os.fsdecode(folder))
        return made or (bool(above) and made_by_a_program(above))

    for name in names:
        if made_by_a_program(name.rpartition(b"/")[0]):
            continue
        path, before = root / os.fsdecode(name), committed.get(name)
        size = _size(path)
        try:
            if room <= 0 or len(patches) == MOST_FILES:
                raise _LeftOutError("the patch is full")
            if patch := _patch(root, commit, name, before):
                patches.append(patch)
                room -= size + (before.size if before else 0)
        except (OSError, subprocess.SubprocessError, _LeftOutError) as error:
            if line := _left_out(name, path, _reason(error), before, digestible):
                left_out.append(line)
            digestible -= size if size <= digestible else 0
    if left_out:
        more = len(left_out) - MOST_LISTED
        left_out = [b"# Left out of this patch:\n", *left_out[:MOST_LISTED]]
        left_out += [b"#   and %d more\n" % more] if more > 0 else []
    return b"".join(left_out + patches)


def commit_of(source: Path) -> str | None:
    """The commit that is checked out in the repository of a file, or None."""
    try:
        return git(source.parent, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _files_of(root: Path, commit: str | None) -> dict[bytes, _Committed]:
    """The files of a commit by name."""
    files = {}
    if commit is not None:
        for line in _lines(git(root, "ls-tree", "-r", "-l", "-z", "--full-tree", commit)):
            about, _, name = line.partition(b"\t")
            mode, _, digest, size = about.split()
            files[name] = _Committed(
                int(mode, 8), digest.decode(), int(size) if size.isdigit() else 0
            )
    return files


def _candidates(root: Path, commit: str | None) -> list[bytes]:
    """Names of files that may differ from the commit: tracked, new Python, then other new."""
    tracked = [(line[:1], line[2:]) for line in _lines(git(root, "ls-files", "-v", "-z"))]
    if commit is None:
        changed = {name for _, name in tracked}
    else:
        comparison = (
            "diff-index",
            "--name-only",
            "-z",
            "--no-renames",
            "--ignore-submodules=dirty",
        )
        changed = set(_lines(git(root, *comparison, commit, "--")))
        # `git update-index --assume-unchanged` and `--skip-worktree` hide edits from diff-index.
        hidden = {name for tag, name in tracked if tag == b"S" or tag.islower()}
        changed |= {name for name in hidden if os.path.lexists(root / os.fsdecode(name))}
    unknown = set(_lines(git(root, "ls-files", "--others", "--exclude-standard", "-z")))
    return [
        *sorted(changed),
        *sorted(unknown - changed, key=lambda name: (not name.endswith(b".py"), name)),
    ]


def _is_made_by_a_program(folder: Path) -> bool:
    """Whether a folder is a run directory or a virtual environment."""
    if os.path.lexists(folder / "pyvenv.cfg"):
        return True
    try:
        fields = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and {"experiment", "run"} <= fields.keys()


def _patch(root: Path, commit: str | None, name: bytes, before: _Committed | None) -> bytes:
    """The patch of one file, empty if nothing has changed.

    Raises:
        _LeftOutError: if the patch can't hold the file.
        OSError, subprocess.SubprocessError: if the file can't be read, or git fails.
    """
    if name.endswith(b"/") or (before is not None and before.mode == _SUBMODULE):
        raise _LeftOutError("a git repository of its own")
    now = _current(root / os.fsdecode(name))
    deletion = b"" if before is None else _deletion(name, before)
    if now is None:
        return deletion
    mode, content = now
    if before is not None:
        if before.size > LARGEST_FILE:
            raise _LeftOutError(f"it had more than {LARGEST_FILE} bytes")
        if mode == before.mode and before.digest in _digests([content], len(content))[1]:
            return b""
        if stat.S_ISREG(before.mode) and stat.S_ISREG(mode):
            committed = f"{commit}:".encode() + name
            return git(root, "diff", *_PLAIN_DIFF, committed, "--", name)
    if b"\0" in content:
        raise _LeftOutError("new and binary")
    return deletion + _creation(name, mode, content)


def _current(path: Path) -> tuple[int, bytes] | None:
    """The mode and the content of a file or link, as git keeps them; None if there is none.

    Raises:
        OSError: if it can't be read, is neither a file nor a link, or is larger than
            ``LARGEST_FILE``.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return 0o120000, os.fsencode(path.readlink())
        if stat.S_ISDIR(mode):
            return None
        return 0o100755 if mode & stat.S_IXUSR else 0o100644, read_regular(path, LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _deletion(name: bytes, before: _Committed) -> bytes:
    # Git's binary form is short: it gives the digest of the deleted content.
    return b"%sdeleted file mode %o\nindex %s..%s\nGIT binary patch\nliteral 0\nHcmV?d00001\n\n" % (
        _header(name),
        before.mode,
        before.digest.encode(),
        b"0" * len(before.digest),
    )


def _creation(name: bytes, mode: int, content: bytes) -> bytes:
    header = b"%snew file mode %o\n" % (_header(name), mode)
    if not content:
        return header
    lines = content.removesuffix(b"\n").split(b"\n")
    end = b"" if content.endswith(b"\n") else b"\\ No newline at end of file\n"
    return b"%s--- /dev/null\n+++ %s\n@@ -0,0 +1,%d @@\n%s%s" % (
        header,
        _quoted(b"b/" + name),
        len(lines),
        b"".join(b"+%s\n" % line for line in lines),
        end,
    )


def _header(name: bytes) -> bytes:
    return b"diff --git %s %s\n" % (_quoted(b"a/" + name), _quoted(b"b/" + name))


def _quoted(name: bytes) -> bytes:
    """A name as git writes it in a patch: in double quotes, with unusual bytes in octal."""
    if re.fullmatch(rb"[\w./+-]+", name):
        return name
    usual = range(0x20, 0x7F)
    escaped = (b"%c" % c if c in usual and c not in b'"\\' else b"\\%03o" % c for c in name)
    return b'"%s"' % b"".join(escaped)


def _left_out(name: bytes, path: Path, reason: str, before: _Committed | None, most: int) -> bytes:
    """The comment line of a left-out file; empty if its content is the committed one.

    Args:
        most: a larger file, in bytes, is not digested.
    """
    facts = [reason]
    if not os.path.lexists(path):
        facts += ["deleted"]
    elif size := _size(path):
        facts += [f"{size} bytes", "no digest"]
        if size <= most:
            try:
                with open_regular(path) as file:
                    blocks = iter(functools.partial(file.read, 1 << 20), b"")
                    sha256, git_digests = _digests(blocks, size)
            except OSError:
                pass  # ``reason`` says why
            else:
                if before is not None and before.digest in git_digests:
                    return b""
                facts[-1] = f"SHA-256 {sha256}"
    return b"#   %s: %s\n" % (_quoted(name), ", ".join(facts).encode())


def _digests(blocks: Iterable[bytes], size: int) -> tuple[str, set[str]]:
    """The SHA-256 of ``size`` bytes in blocks, and their digests as git computes them."""
    plain = hashlib.sha256()
    gits = [hashlib.new(kind, b"blob %d\0" % size) for kind in ("sha1", "sha256")]
    for block in blocks:
        for digest in (plain, *gits):
            digest.update(block)
    return plain.hexdigest(), {digest.hexdigest() for digest in gits}


def _size(path: Path) -> int:
    """The bytes in a regular file; 0 for anything else."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _lines(output: bytes) -> list[bytes]:
    return [line for line in output.split(b"\0") if line]


def git(folder: Path, *arguments: str | bytes, given: bytes = b"") -> bytes:
    """Runs git in a folder, independent of the user's settings, and returns its output.

    Args:
        folder: the working directory.
        arguments: git's arguments.
        given: what git reads from standard input.

    Raises:
        OSError: if git or the folder is missing.
        subprocess.SubprocessError: if git fails, or takes longer than a minute.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1"}
    environment |= {"GIT_NO_LAZY_FETCH": "1", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}
    return subprocess.run(
        ["git", "--no-pager", *_CONFIGURATION, *arguments],
        cwd=folder,
        env=environment,
        input=given,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout


def _reason(error: Exception) -> str:
    """The reason of an error, on one line."""
    if isinstance(error, subprocess.CalledProcessError):
        return "git: " + " ".join(error.stderr.decode(errors="backslashreplace").split())[:300]
    if isinstance(error, subprocess.TimeoutExpired):
        return "git takes too long"
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)
