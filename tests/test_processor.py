"""The processor's features are its extensions, as far as oneDNN may use them."""

from __future__ import annotations

from research.processor import has_bfloat16, has_only_avx2, onednn_aborts

import pytest

ZEN_3 = "fma avx2"
SKYLAKE = f"{ZEN_3} avx512f avx512bw"
ZEN_4 = f"{SKYLAKE} avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN_4} avx512_fp16 amx_tile amx_bf16"
ARM = "asimd bf16"


@pytest.mark.parametrize(
    ("flags", "limit", "onednn", "bfloat16", "only_avx2", "aborts"),
    [
        (ZEN_3, None, "1", False, True, ""),
        (ZEN_3, None, "0", False, False, ""),
        (ZEN_3, "AVX512_CORE_AMX", "1", False, True, ""),
        (SKYLAKE, None, "1", False, False, ""),
        (SKYLAKE, "AVX2", "1", False, True, "bfloat16"),
        (ZEN_4, None, "1", True, False, ""),
        (ZEN_4, "AVX512_CORE", "1", False, False, ""),
        (SAPPHIRE_RAPIDS, None, "1", True, False, ""),
        (SAPPHIRE_RAPIDS, "", "true", True, False, ""),
        (SAPPHIRE_RAPIDS, "ALL", "1", True, False, ""),
        (SAPPHIRE_RAPIDS, "nonsense", "1", True, False, ""),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_AMX", "1", True, False, ""),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_FP16", "1", True, False, ""),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", "1", True, False, "float16"),
        (SAPPHIRE_RAPIDS, "avx512_core", "1", False, False, "float16"),
        (SAPPHIRE_RAPIDS, "AVX2_VNNI", "1", False, True, "bfloat16 float16"),
        (SAPPHIRE_RAPIDS, "AVX2", "0", False, False, ""),
        (SAPPHIRE_RAPIDS, None, "0", False, False, ""),
        (ARM, None, None, True, False, ""),
        ("", None, None, True, False, ""),
    ],
)
def test_what_onednn_may_not_use_counts_as_missing(
    flags: str,
    limit: str | None,
    onednn: str | None,
    bfloat16: bool,
    only_avx2: bool,
    aborts: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("research.processor.extensions", lambda: frozenset(flags.split()))
    for name, value in (("ONEDNN_MAX_CPU_ISA", limit), ("TF_ENABLE_ONEDNN_OPTS", onednn)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert (has_bfloat16(), has_only_avx2()) == (bfloat16, only_avx2)
    dtypes = ("bfloat16", "float16", "float32", "float64")
    assert [dtype for dtype in dtypes if onednn_aborts(dtype)] == aborts.split()
