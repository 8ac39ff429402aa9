"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import StorageError, one_line

_PARTIAL = ".partial-"
_SEAL = "sha256"


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; the file or directory made there takes its place.

    The bytes are flushed to the disk before the rename, so that a reader, or a crash at any
    instant, sees the old file or the new one and never a part. If the body raises, the
    temporary file is removed and ``path`` stays as it was.

    Args:
        path: the file to create or to replace; its folder must exist. The temporary path keeps
            its ending, from which Keras and NumPy choose the format, and nothing else of its
            name, so that TensorBoard does not take it for an event file.
    """
    partial = path.with_name(f"{_PARTIAL}{os.getpid()}{path.suffix}")
    try:
        yield partial
        sync(partial)
        if path.is_dir():
            shutil.rmtree(path)  # only an empty directory can be replaced
        partial.replace(path)
        sync(path.parent)
    finally:
        _remove(partial)


def remove_partial_files(folder: Path) -> None:
    """Removes what a process that was killed within ``replaced_atomically`` has left behind."""
    for path in list(folder.rglob(f"{_PARTIAL}*")):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turns what goes wrong while ``path`` is written into a StorageError.

    Args:
        path: is named in the message.
        others: what else than OSError means that it can't be written.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except StorageError:
        raise
    except kinds as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else one_line(error)[:200]
        raise StorageError(f"{path}: can't be written ({reason})") from error


def sync(path: Path) -> None:
    """Has the operating system put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically. NaN and infinity are refused."""
    with storage_errors(path), replaced_atomically(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is no plain file, not JSON, or nested too deeply.
    """
    if not is_regular(path):
        raise ValueError("it is not a file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_sealed_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON as ``write_json`` does, with a SHA-256 of all fields as the last of them."""
    write_json(path, dict(fields) | {_SEAL: _seal(fields)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The fields that ``write_sealed_json`` has written.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not as it was written.
    """
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.pop(_SEAL, None) != _seal(fields):
        raise ValueError("it has been changed since it was written")
    return fields


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def is_regular(path: Path) -> bool:
    """Whether there is a plain file: no link, no folder, nothing whose reading may never end.

    Raises:
        OSError: if that can't be seen.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def move_aside(path: Path) -> Path:
    """Keeps what is damaged under another name, which says so and which no program looks for."""
    stem = path.name.partition(".")[0]
    numbers = itertools.count(2)
    aside = path.with_name(f"{stem}.damaged")
    while os.path.lexists(aside):
        aside = path.with_name(f"{stem}.damaged-{next(numbers)}")
    with storage_errors(path):
        path.rename(aside)
    return aside


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
