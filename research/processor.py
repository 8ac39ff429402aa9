"""The processor's features, which decide how a layer computes fastest."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from pathlib import Path

# The environment variables that this module, and not the user, has set.
variables_set: set[str] = set()


def use_onednn() -> None:
    """Makes TensorFlow compute with oneDNN, its default on some processors only.

    oneDNN is also faster without AVX-512: it saves a fifth of a step. Call this before TensorFlow
    is imported. A user's own setting is kept. See https://github.com/oneapi-src/oneDNN.
    """
    too_late = "tensorflow" in sys.modules or "TF_ENABLE_ONEDNN_OPTS" in os.environ
    if platform.machine() in ("x86_64", "AMD64") and not too_late:
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
        variables_set.add("TF_ENABLE_ONEDNN_OPTS")


def has_bfloat16() -> bool:
    """Whether the processor has native bfloat16 and oneDNN uses it; True if unknown."""
    if not extensions():
        return True
    native = bool(extensions() & {"avx512_bf16", "amx_bf16", "bf16"})
    return native and _has_onednn(default=True) and _onednn_may_use("AVX512_CORE_BF16")


def has_only_avx2() -> bool:
    """Whether oneDNN is in use, with no instructions beyond AVX2."""
    has_avx512 = "avx512f" in extensions() and _onednn_may_use("AVX512_CORE")
    return "avx2" in extensions() and not has_avx512 and _has_onednn(default=False)


def onednn_aborts(dtype: str) -> bool:
    """Whether TensorFlow would abort in a layer that computes in a dtype, such as "float16".

    TensorFlow decides by the processor alone whether oneDNN multiplies matrices of bfloat16 or
    float16. If ONEDNN_MAX_CPU_ISA forbids oneDNN these instructions, oneDNN raises an error that
    ends the process.
    """
    needs = {"bfloat16": ("avx512f", "AVX512_CORE"), "float16": ("avx512_fp16", "AVX512_CORE_FP16")}
    if dtype not in needs or not _has_onednn(default=False):
        return False
    flag, level = needs[dtype]
    return flag in extensions() and not _onednn_may_use(level)


# The values of oneDNN's environment variable ONEDNN_MAX_CPU_ISA; each level includes those before
# it. Other values, and no value, forbid no instructions that matter here.
_LEVELS = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
)


def _onednn_may_use(level: str) -> bool:
    """Whether ONEDNN_MAX_CPU_ISA lets oneDNN use the instructions of a level."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit not in _LEVELS or _LEVELS.index(limit) >= _LEVELS.index(level)


def _has_onednn(default: bool) -> bool:
    """Whether TensorFlow computes with oneDNN; ``default`` if the variable is not set."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS", str(default)).lower() in ("1", "true")


@functools.cache
def extensions() -> frozenset[str]:
    """The processor's extensions, by their names in Linux; empty if unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(found[0].partition(":")[2].split()) if found else frozenset()


def vector_extensions() -> list[str]:
    """The extensions for vectors and matrices, which decide how sums are divided into parts."""
    names = re.compile("sse|avx|amx|fma|asimd|sve")
    return sorted(name for name in extensions() if names.match(name))
