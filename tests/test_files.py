from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.files import LARGEST_JSON, open_regular, read_json, read_regular, sha256

import pytest

READERS: list[Callable[[Path], Any]] = [
    open_regular,
    read_json,
    sha256,
    lambda path: read_regular(path, 100),
]


def place(kind: str, path: Path) -> Path:
    """Puts something other than a regular file at ``path``; "link" links to a FIFO."""
    if kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "device":
        path.symlink_to(os.devnull)
    elif kind == "link":
        os.mkfifo(path.with_name("target"))
        path.symlink_to("target")
    else:
        os.mkfifo(path)
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["FIFO", "directory", "socket", "device", "link"])
def test_only_regular_files_are_opened(
    kind: str, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with pytest.raises(OSError, match="FIFO" if kind == "link" else kind):
        read(place(kind, Path("file")))


@pytest.mark.parametrize("name", ["nothing", "nul\0", "lone \ud800", "long" * 100])
def test_a_name_that_no_file_can_have_is_an_oserror(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read_json(tmp_path / name)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps("x" * 98))
    assert read_regular(path, 100) == path.read_bytes()
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_regular(path, 99)
    os.truncate(path, LARGEST_JSON + 1)  # sparse
    with pytest.raises(OSError, match="more than"):
        read_json(path)
