"""What a run was made with, as far as it decides the result or the speed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

PACKAGES = ("tensorflow", "keras", "numpy", "tensorboard", "h5py")


def describe_environment(source: Path) -> dict[str, Any]:
    """Versions, hardware, threads, flags and the state of the source code.

    Args:
        source: a file of the code that runs; its git repository is described.

    Returns:
        Something that JSON can hold. ``threads`` of 0 means that TensorFlow decides; numbers of
        threads change the order of sums, and so the last bits of a result.
    """
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
            if name.startswith(("TF_", "XLA_", "OMP_", "CUDA_VISIBLE", "KERAS_"))
        },
        "git": {
            "commit": git(source, "rev-parse", "HEAD"),
            "dirty": bool(git(source, "status", "--porcelain")),
        },
    }


def git(source: Path, *arguments: str) -> str | None:
    """What git says, run in the folder of ``source``; None outside a repository or without git."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=source.parent, capture_output=True, check=False
        )
    except OSError:
        return None
    return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else None


def command_line() -> list[str]:
    """The words with which this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
