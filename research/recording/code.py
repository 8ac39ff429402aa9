"""Keeps the code of a run in its directory: the experiment's, and that of this library."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path

import research

PACKAGE = Path(research.__file__).parent
# The parts of the library that no training imports.
_NOT_TRAINED_WITH = ("tools", "comparing", "study.py", "verbs.py", "__main__.py")
# What is no part of an experiment, wherever that stands: this package, and Python itself.
APART = [PACKAGE, Path(sysconfig.get_paths()["stdlib"]).resolve()]


def code_of(experiment: Path) -> list[Path]:
    """The files of an experiment: its own, and the modules imported from its folder so far.

    Args:
        experiment: the experiment's file, which has been imported or is being run.

    Returns:
        The Python files of all imported modules in the experiment's folder or below, without those
        of the library and of installed packages.
    """
    experiment = experiment.resolve()
    found = {experiment}
    for module in list(sys.modules.values()):
        # getattr would import a lazy module.
        name = getattr(module, "__dict__", {}).get("__file__")
        # Resolving the paths of thousands of installed modules would take 0.2 seconds.
        if isinstance(name, str) and name.endswith(".py") and "/site-packages/" not in name:
            path = Path(name).resolve()
            beside = path.is_relative_to(experiment.parent) and path.is_file()
            apart = "site-packages" in path.parts or any(map(path.is_relative_to, APART))
            if beside and not apart:
                found.add(path)
    return sorted(found)


def copy_code(experiment: Path, folder: Path) -> None:
    """Copies the files of an experiment into a folder, with their relative paths.

    Raises:
        OSError: if a file can't be copied.
    """
    for path in code_of(experiment):
        target = folder / path.relative_to(experiment.resolve().parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def trained_with(name: str) -> bool:
    """Whether trainings import a file of the library, by its path such as ``research/loop.py``."""
    package, _, inside = name.partition("/")
    return package == PACKAGE.name and inside.split("/")[0] not in _NOT_TRAINED_WITH


def library_sha256(root: Path) -> str:
    """The SHA-256 of the library's files that trainings import."""
    digest, package = hashlib.sha256(), root / "research"
    for path in sorted(package.rglob("*.py")):
        if trained_with(path.relative_to(root).as_posix()):
            content = path.read_bytes()
            name = path.relative_to(package).as_posix()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def difference(pairs: Iterable[tuple[Path, Path]], context: int = 3) -> list[str]:
    """The lines of a unified diff of files.

    Args:
        pairs: what is compared; a file that is missing has no lines.
        context: number of lines around a change.
    """
    return [
        line
        for before, after in pairs
        for line in unified((before.name, _content(before)), (after.name, _content(after)), context)
    ]


def unified(before: tuple[str, bytes], after: tuple[str, bytes], context: int = 3) -> list[str]:
    """The lines of a unified diff of two files, given by name and content; none if they are equal.

    Line ends count, and bytes that are not UTF-8 are shown as escapes.
    """
    texts = _lines(before[1]), _lines(after[1])
    return list(difflib.unified_diff(*texts, before[0], after[0], n=context))


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _lines(content: bytes) -> list[str]:
    """The lines of a text, each with its end."""
    *lines, last = content.decode(errors="backslashreplace").split("\n")
    cut = [f"{last}\n\\ No newline at end of file\n"] if last else []
    return [f"{line}\n" for line in lines] + cut


def copy_library(path: Path) -> None:
    """Writes the Python files of this package to a zip archive, as ``research/...``.

    Raises:
        OSError: if a file can't be read or written.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as file:
        for source in filter(os.path.isfile, sorted(PACKAGE.rglob("*.py"))):
            file.write(source, source.relative_to(PACKAGE.parent).as_posix())
