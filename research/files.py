"""Files: atomic writing, safe reading, digests, and errors with remedies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from research.errors import StorageError, one_line

_PARTIAL = ".partial-"
_SEAL = "sha256"

# The most that read_json reads, in bytes. A few kilobytes are usual.
LARGEST_JSON = 16 << 20
# The most that read_source reads of a file of code, in bytes.
LARGEST_SOURCE = 16 << 20
# The remedies for errors of the operating system.
_REMEDIES = {
    os.strerror(number): remedy
    for numbers, remedy in (
        ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
        ((errno.EMFILE, errno.ENFILE), "close files, or raise the limit (ulimit -n)"),
        ((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "put its folder back where it was"),
        ((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    )
    for number in numbers
}


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; the file or directory made there replaces ``path``.

    The bytes are flushed to the disk before the rename, so that readers, also after a crash, see
    the old file or the new one and never a part. If the body raises, the temporary file is removed
    and ``path`` is unchanged.

    Args:
        path: the file to create or to replace; its folder must exist. The temporary path keeps the
            ending, from which Keras and NumPy choose the format, but not the name, so that
            TensorBoard does not take it for an event file.
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
    """Removes temporary files of processes that were killed within ``replaced_atomically``."""
    for path in list(folder.rglob(f"{_PARTIAL}*")):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turns errors while ``path`` is written into a StorageError.

    Args:
        path: the path that the message names.
        others: further types of errors, beside OSError, that mean a failed write.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except StorageError:
        raise
    except kinds as error:
        reason = _reason(error)
        remedy = _REMEDIES.get(reason, "correct that")
        raise StorageError(f"{path}: can't be written ({reason}); {remedy}") from error


def _reason(error: Exception) -> str:
    """The operating system's text for an error; libraries have it in their messages."""
    if number := getattr(error, "errno", None):
        return os.strerror(number)
    message = one_line(error)
    known = [word for word in map(os.strerror, errno.errorcode) if word in message]
    return max(known, key=len, default=re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message)[:200].strip())


def sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically. NaN and infinity are refused."""
    with storage_errors(path), replaced_atomically(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading. Never waits; opens no device.

    Raises:
        OSError: if the file can't be opened, or is a FIFO, a directory, a device or a socket;
            ``strerror`` says which.
    """
    try:
        _refuse_irregular(path, path.stat().st_mode)
        # The file may have been replaced; O_NONBLOCK keeps a FIFO from waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # NUL or a lone surrogate in the name
        raise OSError(errno.EINVAL, one_line(error), str(path)) from error
    try:
        _refuse_irregular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_irregular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise OSError(errno.EINVAL, f"it is a {kind}, not a file", str(path))


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: as ``open_regular`` does, or if the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content


def read_source(path: Path) -> bytes:
    """The content of a file of code in a run directory.

    Raises:
        OSError: if it can't be read, is not a regular file, or is larger than ``LARGEST_SOURCE``.
    """
    return read_regular(path, LARGEST_SOURCE)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: if it can't be read, is not a regular file, or is larger than ``LARGEST_JSON``.
        ValueError: if it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(read_regular(path, LARGEST_JSON))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; a line that was cut off is left out."""
    try:
        lines = read_regular(path, LARGEST_JSON).splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object that users can edit; empty if it can't be read, or is no object."""
    with contextlib.suppress(OSError, ValueError):
        return as_object(read_json(path))
    return {}


def as_object(value: Any) -> dict[str, Any]:
    """A value from a file that users can edit if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def write_sealed_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON as ``write_json`` does, with a SHA-256 of the fields as the last field."""
    write_json(path, dict(fields) | {_SEAL: _seal(fields)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Reads the fields that ``write_sealed_json`` has written.

    Raises:
        OSError: if the file can't be read.
        ValueError: if the file has been changed since.
    """
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.pop(_SEAL, None) != _seal(fields):
        raise ValueError("it has been changed since it was written")
    return fields


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def is_regular(path: Path) -> bool:
    """Whether ``path`` is a regular file: no link, folder, FIFO or device.

    Raises:
        OSError: if its status can't be read.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def move_aside(path: Path, *, keep: bool = False) -> Path:
    """Renames a damaged file to ``<name>.damaged``, which no program reads; returns the path.

    Args:
        path: the file.
        keep: a plain file keeps its own name, too, until another file replaces it: a kill before
            that then loses nothing.
    """
    stem = path.name.partition(".")[0]
    numbers = itertools.count(2)
    aside = path.with_name(f"{stem}.damaged")
    while os.path.lexists(aside):
        aside = path.with_name(f"{stem}.damaged-{next(numbers)}")
    with storage_errors(path):
        if keep and is_regular(path):
            with contextlib.suppress(OSError):  # some file systems have no hard links
                aside.hardlink_to(path)
                return aside
        path.rename(aside)
    return aside


def sha256(path: Path) -> str:
    """The SHA-256 digest of a regular file, in hexadecimal.

    Raises:
        OSError: as ``open_regular`` does.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
