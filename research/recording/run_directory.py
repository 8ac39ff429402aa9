"""The directory of a run: its atomic creation, its lock, and the files that describe the run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shlex
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.config import Config, config_as_json
from research.errors import InputError, StorageError, one_line
from research.files import (
    open_regular,
    read_source,
    sha256,
    storage_errors,
    sync,
    write_json,
    write_sealed_json,
)
from research.recording.code import copy_code, copy_library

# What a run leaves that has finished, or became non-finite. A resumed run removes both first.
FINISHED, NON_FINITE = "finished.json", "non_finite.json"
# The folder and the file in a run directory that hold the experiment's code and the library's.
CODE, LIBRARY = "code", "library.zip"
# The name of a run directory until it is complete begins so.
NEW = ".new-run-"
_SECONDS_UNTIL_ABANDONED = 60
# is_locked holds the lock for microseconds; lock waits as long for it.
_SECONDS_FOR_ASKING = 0.2


class RunDirectory:
    """A run directory that belongs to this process until this context is left.

    Args:
        path: the path of the directory.
        descriptor: the open and locked directory. The kernel releases the lock when the process
            ends.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def path(self) -> Path:
        """The path, checked at each use; see ``check``."""
        self.check()
        return self._path

    def check(self) -> None:
        """Compares the directory at the path with the locked one.

        Raises:
            StorageError: if the directory was moved or replaced.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                return
        raise StorageError(
            f"{self._path}: it has been moved or replaced during the run; put it back"
        )

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)


def lock_directory(path: Path) -> RunDirectory:
    """Locks the directory of a run that is to be resumed; changes no file in it.

    Raises:
        InputError: if another process has locked it, or it can't be locked.
    """
    try:
        return RunDirectory(path, lock(path))
    except BlockingIOError:
        reason = "another process is at work on it; wait for it, or stop it"
    except OSError as error:
        reason = f"it can't be locked ({error.strerror})"
    raise InputError(f"--resume {path}: {reason}")


def create_directory(
    run_dir: Path | None, experiment: str, seed: int, fill: Callable[[Path], None]
) -> RunDirectory:
    """Creates the directory of a new run with its first files, atomically.

    Whenever the process is killed, the directory is complete or does not exist.

    Args:
        run_dir: the path; None chooses one below ``runs/``, with the time and the seed.
        experiment: the experiment's name.
        seed: the run's seed.
        fill: a function that writes the first files into an empty directory.

    Raises:
        InputError: if the directory can't be created.
        StorageError: if a file can't be written; the directory does not exist then.
    """
    candidates = iter([run_dir]) if run_dir is not None else free_names(experiment, seed)
    path = next(candidates)
    made = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        new = path.with_name(f"{NEW}{uuid.uuid4().hex}")
        made.insert(0, new)
        new.mkdir()
        descriptor = lock(new)
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"{path}: can't be created ({error.strerror})") from error
    try:
        try:
            fill(new)
        except StorageError as error:
            raise StorageError(str(error).replace(str(new), str(path))) from error
        path = _rename(new, itertools.chain([path], candidates))
        with storage_errors(path):
            sync(path.parent)
    except BaseException:
        os.close(descriptor)
        shutil.rmtree(new, ignore_errors=True)
        _remove_empty(made)
        raise
    return RunDirectory(path, descriptor)


def refuse_existing(run_dir: Path | None) -> None:
    """Refuses the path of a new run directory if it exists.

    Raises:
        InputError: if it exists.
    """
    if run_dir is not None and os.path.lexists(run_dir):
        raise InputError(
            f"--run-dir {run_dir}: it exists, and a run never writes into another's directory; "
            "name a new one, or --resume this one"
        )


def describe(
    folder: Path,
    config: Config,
    identity: dict[str, str],
    environment: dict[str, Any],
    uncommitted: bytes,
    experiment: Path,
) -> None:
    """Writes the files that describe a new run.

    Args:
        folder: the run directory.
        config: the run's options.
        identity: the run's identity, see ``Start.identity``.
        environment: from ``describe_environment``.
        uncommitted: from ``uncommitted_changes``.
        experiment: the experiment's file, whose code is copied.

    Raises:
        StorageError: if a file can't be written.
    """
    write_config(folder, config, identity)
    write_command(folder, environment["command"])
    with storage_errors(folder):
        if uncommitted:
            (folder / "uncommitted.diff").write_bytes(uncommitted)
        copy_code(experiment, folder / CODE)
        copy_library(folder / LIBRARY)
        environment = environment | {"code": code_sha256(folder)}
    write_json(folder / "environment.json", environment)


def code_sha256(run: Path) -> dict[str, str]:
    """The SHA-256 of each file of code in a run directory, by its path there.

    Raises:
        OSError: if a file is missing or can't be read.
    """
    files = [*(run / CODE).rglob("*.py"), run / LIBRARY]
    return {path.relative_to(run).as_posix(): sha256(path) for path in sorted(files)}


def read_code(run: Path) -> dict[str, bytes]:
    """The code in a run directory by path: ``code/...``, and ``research/...`` of the library.

    Raises:
        OSError: if a file is missing or can't be read.
        ValueError: if the archive of the library is damaged.
    """
    files = (run / CODE).rglob("*.py")
    code = {path.relative_to(run).as_posix(): read_source(path) for path in files}
    with open_regular(run / LIBRARY) as file:
        try:
            archive = zipfile.ZipFile(file)
            names = archive.namelist()
            if strange := [n for n in names if not n.startswith("research/") or ".." in n]:
                raise ValueError(f"it holds {strange[0]}")
            return code | {name: archive.read(name) for name in names}
        except Exception as error:  # a damaged archive leads to errors of many types
            raise ValueError(f"{LIBRARY} is damaged ({one_line(error)[:100]})") from error


def write_config(folder: Path, config: Config, identity: dict[str, str]) -> None:
    """Writes config.json: the options of a run, and its identity."""
    write_sealed_json(folder / "config.json", identity | config_as_json(config))


def write_command(folder: Path, command: list[str]) -> None:
    """Appends the command that started or resumed the run to command.txt."""
    path = folder / "command.txt"
    with storage_errors(path), path.open("a", errors="backslashreplace") as file:
        file.write(shlex.join(command) + "\n")


def lock(path: Path) -> int:
    """A descriptor with an exclusive lock on a directory, until every copy of it is closed.

    Raises:
        BlockingIOError: if another process has locked it.
        OSError: if it can't be locked.
    """
    descriptor, until = os.open(path, os.O_RDONLY | os.O_DIRECTORY), time.monotonic()
    until += _SECONDS_FOR_ASKING
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
    except BaseException:
        os.close(descriptor)
        raise


def is_locked(path: Path) -> bool:
    """Whether a process has locked a directory by ``lock``, and so is at work on it.

    The system answers only who tries to lock. The trial is a shared lock, released at once: it
    disturbs no other that asks, and ``lock`` waits for it.

    Raises:
        OSError: if the directory can't be opened, or locked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def free_names(experiment: str, seed: int) -> Iterator[Path]:
    """Names below ``runs/`` for a new run without ``--run-dir``, which takes the first free one."""
    folder, name = Path("runs") / experiment, f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    yield folder / name
    for number in itertools.count(2):
        yield folder / f"{name}-{number}"


def _rename(new: Path, candidates: Iterator[Path]) -> Path:
    """Renames a directory to the first free candidate; returns the new path."""
    for path in candidates:
        if os.path.lexists(path):
            continue
        try:
            new.rename(path)
        except OSError as error:
            # Another run has taken the name since the check above.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                continue
            raise InputError(f"{path}: can't be created ({error.strerror})") from error
        return path
    raise InputError(f"--run-dir {path}: it has just been created by another program")


def _remove_abandoned(folder: Path) -> None:
    """Removes directories left by processes that were killed while they created a run."""
    for path in folder.glob(f"{NEW}*"):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > _SECONDS_UNTIL_ABANDONED:
                descriptor = lock(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
