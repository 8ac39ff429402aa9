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
    """Whether the processor has native bfloat16 and oneDNN uses it; assumed where unknown."""
    if not _flags():
        return True
    native = bool(_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return native and _has_onednn(default=True) and _onednn_may_use("AVX512_CORE_BF16")


def has_only_avx2() -> bool:
    """Whether oneDNN is in use and AVX2 is the most that it uses."""
    has_avx512 = "avx512f" in _flags() and _onednn_may_use("AVX512_CORE")
    return "avx2" in _flags() and not has_avx512 and _has_onednn(default=False)


def onednn_aborts(dtype: str) -> bool:
    """Whether TensorFlow would abort in a layer that computes in a dtype, such as "float16".

    By the processor alone TensorFlow decides whether oneDNN multiplies matrices of bfloat16 or
    float16. oneDNN, which ONEDNN_MAX_CPU_ISA forbids the instructions, then raises an error that
    ends the process.
    """
    needs = {"bfloat16": ("avx512f", "AVX512_CORE"), "float16": ("avx512_fp16", "AVX512_CORE_FP16")}
    if dtype not in needs or not _has_onednn(default=False):
        return False
    flag, level = needs[dtype]
    return flag in _flags() and not _onednn_may_use(level)


# What oneDNN's environment variable ONEDNN_MAX_CPU_ISA may be; a higher level includes those
# below it. Others, and no value at all, forbid nothing that matters here.
_LEVELS = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
)


def _onednn_may_use(level: str) -> bool:
    """Whether ONEDNN_MAX_CPU_ISA lets oneDNN use the instructions of a level."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit not in _LEVELS or _LEVELS.index(limit) >= _LEVELS.index(level)


def _has_onednn(default: bool) -> bool:
    """Whether TensorFlow computes with oneDNN; ``default`` where nobody has decided."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS", str(default)).lower() in ("1", "true")


@functools.cache
def _flags() -> frozenset[str]:
    """The processor's extensions, by the names that Linux gives them; empty where unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(found[0].partition(":")[2].split()) if found else frozenset()
