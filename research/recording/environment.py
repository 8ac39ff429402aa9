"""Describes the environment of a run, as far as it decides the result or the speed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.files import as_object
from research.printable import counted
from research.processor import vector_extensions
from research.recording.source import commit_of

PACKAGES = ("tensorflow", "keras", "numpy", "tensorboard", "h5py")
# The parts of a description that can change the last bits of a result.
DECISIVE = ("python", "packages", "cpu", "extensions", "cores", "devices", "threads", "flags")
# The names of environment variables that decide how TensorFlow computes begin so. TF_ alone would
# also match Terraform's variables, which hold secrets.
_FLAGS = (
    *("XLA_", "OMP_", "ONEDNN_", "DNNL_", "CUDA_VISIBLE", "KERAS_"),
    *("TF_AUTO", "TF_CONV", "TF_CPU_", "TF_CU", "TF_DETERMINISTIC_", "TF_DISABLE_", "TF_ENABLE"),
    *("TF_FORCE_", "TF_FP16_", "TF_GPU_", "TF_MATMUL_", "TF_MKL_", "TF_NUM_", "TF_ONEDNN_"),
    *("TF_OVERRIDE_", "TF_SET_ONEDNN_", "TF_SYNC_", "TF_USE_", "TF_XLA_"),
)


def describe_environment(source: Path, uncommitted: bytes) -> dict[str, Any]:
    """Describes versions, hardware, threads, flags and the state of the source code.

    Args:
        source: a file of the code that runs, in its git repository.
        uncommitted: the patch from ``uncommitted_changes``.

    Returns:
        A dictionary that JSON can hold, in valid Unicode. An unknown value is None. ``threads`` of
        0 means that TensorFlow decides; the number of threads changes the order of sums, and so the
        last bits of a result.
    """
    import tensorflow as tf  # takes seconds; describe_system needs none

    return describe_system() | {
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "threads": {
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        },
        "git": {
            "commit": commit_of(source),
            "uncommitted": hashlib.sha256(uncommitted).hexdigest() if uncommitted else None,
        },
        "command": [_unicode(word) for word in (sys.executable or "python", *sys.orig_argv[1:])],
        "working_directory": _working_directory(),
    }


def describe_system() -> dict[str, Any]:
    """The versions, the processor and the flags of ``describe_environment``."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "extensions": vector_extensions(),
        "cores": len(cores()) or os.cpu_count(),
        "flags": flags(os.environ),
    }


def flags(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment variables that decide how TensorFlow computes."""
    return {
        _unicode(name): _unicode(value)
        for name, value in sorted(variables.items())
        if name.startswith(_FLAGS)
    }


def differences(before: Any, now: dict[str, Any]) -> list[str]:
    """The differences that can change the last bits of a result, one phrase for each.

    Args:
        before: from ``describe_environment``, read back from a file; it may be any JSON value,
            since users can edit the file.
        now: from ``describe_environment``.
    """
    before = as_object(before)
    different = different_values(before, now)
    extensions = different.pop("extensions", None)
    found = [_difference(name, *values) for name, values in different.items()]
    if extensions is not None:
        found.append(f"the processors differ in {_short(' '.join(map(str, extensions)).strip())}")
    if before.get("git") != now.get("git"):
        found.append("the code is at another commit, or has been edited")
    return found


def different_values(
    before: dict[str, Any], now: dict[str, Any], parts: Sequence[str] = DECISIVE
) -> dict[str, tuple[Any, Any]]:
    """The values that differ between two descriptions, by name; None where there is none.

    Args:
        before, now: from ``describe_environment``, or from files that users can edit.
        parts: the parts to compare.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for part in parts:
        a, b = before.get(part), now.get(part)
        if isinstance(a, dict) and isinstance(b, dict):
            names = sorted(name for name in a | b if a.get(name) != b.get(name))
            found |= {name: (a.get(name), b.get(name)) for name in names}
        elif part == "extensions" and isinstance(a, list) and isinstance(b, list):
            # Of some dozens only those that one processor has and the other has not.
            only_one = {str(name) for name in a} ^ {str(name) for name in b}
            one, other = (" ".join(sorted(only_one & set(map(str, c)))) for c in (a, b))
            found |= {part: (one, other)} if only_one else {}
        elif a != b and (part != "extensions" or (part in before and part in now)):
            # Earlier versions have not written the extensions.
            found[part] = (a, b)
    return found


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "extensions" and isinstance(before, str) and isinstance(now, str):
        only_one = " ".join(words for words in (before, now) if words != "none")
        return f"the processors differ in {_short(only_one)}"
    return f"{_short(name)} {_short(before)} is now {_short(now)}"


def _short(value: Any) -> str:
    """A value in at most 100 printable characters, however long or deep it is."""
    text = _unicode(value if isinstance(value, str) else _SHORT.repr(value))
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def _unicode(text: str) -> str:
    """The text, with lone surrogates (bytes that are not UTF-8) written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def cores() -> list[int]:
    """The numbers of the cores that this process may use; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed under this name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # TensorFlow, for one, has packages of other names


def _working_directory() -> str | None:
    try:
        return _unicode(str(Path.cwd()))
    except OSError:
        return None  # it has been deleted


def cpu_name() -> str:
    """The processor's name; empty if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def processor() -> str:
    """What computes, in a few words: the GPUs, or the CPU and how many of its cores may be used."""
    import tensorflow as tf  # as in describe_environment

    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return ", ".join(detail.get("device_name", "GPU") for detail in details)
    return f"{cpu_name() or 'CPU'}, {counted(len(cores()) or os.cpu_count() or 1, 'core')}"
