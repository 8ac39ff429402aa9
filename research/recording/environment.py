"""What a run was made with, as far as it decides the result or the speed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

PACKAGES = ("tensorflow", "keras", "numpy", "tensorboard", "h5py")


def describe_environment(source: Path, uncommitted: bytes) -> dict[str, Any]:
    """Versions, hardware, threads, flags and the state of the source code.

    Args:
        source: a file of the code that runs; its git repository is described.
        uncommitted: from ``uncommitted_changes``.

    Returns:
        Something that JSON can hold. ``threads`` of 0 means that TensorFlow decides; numbers of
        threads change the order of sums, and so the last bits of a result.
    """
    commit = _git(source, "rev-parse", "HEAD")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "threads": {
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        },
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("TF_", "XLA_", "OMP_", "ONEDNN_", "CUDA_VISIBLE", "KERAS_"))
        },
        "git": {
            "commit": None if commit is None else commit.decode().strip(),
            "uncommitted": hashlib.sha256(uncommitted).hexdigest() if uncommitted else None,
        },
        "command": [sys.executable, *sys.orig_argv[1:]],
        "working_directory": str(Path.cwd()),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What can change the last bits of a result, one phrase for each difference.

    Args:
        before, now: from ``describe_environment``.
    """
    found = []
    for part in ("python", "packages", "cpu", "cores", "devices", "threads", "flags"):
        a, b = before.get(part), now.get(part)
        if isinstance(a, dict) and isinstance(b, dict):
            names = sorted(name for name in a | b if a.get(name) != b.get(name))
            found += [f"{name} {a.get(name)} is now {b.get(name)}" for name in names]
        elif a != b:
            found.append(f"{part} {a} is now {b}")
    if before.get("git") != now.get("git"):
        found.append("the code is at another commit, or has been edited")
    return found


def uncommitted_changes(source: Path) -> bytes:
    """What is not committed in the git repository of a file, as a patch for ``git apply``.

    Files that git does not know and does not ignore are part of it. Empty where nothing has
    changed, outside a repository, and without git.
    """
    plain = ("--binary", "--no-color", "--no-ext-diff")
    patch = _git(source, "diff", *plain, "HEAD") or b""
    top = (_git(source, "rev-parse", "--show-toplevel") or b"").strip()
    root = Path(os.fsdecode(top)) / "any"
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "-z") if top else b""
    for name in filter(None, (unknown or b"").split(b"\0")):
        # --no-index compares any two files, and exits with 1 where they differ.
        new = ("diff", *plain, "--no-index", os.devnull, os.fsdecode(name))
        patch += _git(root, *new, success=(0, 1)) or b""
    return patch


def _git(source: Path, *arguments: str, success: tuple[int, ...] = (0,)) -> bytes | None:
    """What git says, run in the folder of ``source``; None outside a repository or without git."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=source.parent, capture_output=True, check=False
        )
    except OSError:
        return None
    return result.stdout if result.returncode in success else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
