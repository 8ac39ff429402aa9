"""What the processor can do, where that decides which way of computing something is fastest."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path

# The environment variables that are set here, and not by the user.
variables_set: set[str] = set()


def use_onednn() -> None:
    """Has TensorFlow compute with oneDNN, which it does by itself on some processors only.

    Without AVX-512, too, it is faster: it saves a fifth of a step. To be called before TensorFlow
    is imported; what the user has set stays. See https://github.com/oneapi-src/oneDNN.
    """
    too_late = "tensorflow" in sys.modules or "TF_ENABLE_ONEDNN_OPTS" in os.environ
    if platform.machine() in ("x86_64", "AMD64") and not too_late:
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
        variables_set.add("TF_ENABLE_ONEDNN_OPTS")


def has_bfloat16() -> bool:
    """Whether the processor can calculate with bfloat16; where that is unknown, it is assumed."""
    return not _flags() or bool(_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def has_only_avx2() -> bool:
    """Whether its vectors are those of AVX2, and oneDNN is in use."""
    return (
        "avx2" in _flags()
        and "avx512f" not in _flags()
        and os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("1", "true")
    )


@functools.cache
def _flags() -> frozenset[str]:
    """The processor's extensions, by the names that Linux gives them; empty where unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(found[0].partition(":")[2].split()) if found else frozenset()
