from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from research.recording.environment import describe_environment, differences, flags

import pytest
from conftest import EXPERIMENTS

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"


def deleted_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()


def no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path.read_text

    def read_text(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.is_relative_to("/proc"):
            raise FileNotFoundError(self)
        return before(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)


def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "PATH", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)


def undecodable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", os.fsdecode(b"\xff.py"), "\ud800"])
    monkeypatch.setenv("ONEDNN_" + os.fsdecode(b"\xfe"), os.fsdecode(b"\xff"))
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)


def no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(sys, "orig_argv", [])


def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    "spoil", [deleted_directory, no_proc, no_home, undecodable, no_python, another_package]
)
def test_it_can_be_described_and_written_whatever_is_missing(
    spoil: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(tmp_path, monkeypatch)
    environment = describe_environment(EXPERIMENT, b"patch")
    text = json.dumps(environment, ensure_ascii=False, allow_nan=False)
    assert json.loads(text.encode()) == environment
    assert differences(environment, environment) == []


def test_flags_of_tensorflow_are_recorded_and_secrets_of_other_programs_are_not() -> None:
    decisive = {
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_DETERMINISTIC_OPS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_CUDNN_DETERMINISTIC": "1",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
    }
    terraform: tuple[str, ...] = (
        "TOKEN_app_terraform_io",
        "ENCRYPTION",
        "REATTACH_PROVIDERS",
        "VAR_password",
    )
    terraform += ("IN_AUTOMATION", "REGISTRY_CLIENT_TIMEOUT", "CLI_ARGS", "DATA_DIR", "LOG")
    others = {f"TF_{name}": "secret" for name in terraform}
    assert flags(decisive | others | {"HOME": "/home/me"}) == decisive


JSON: list[Any] = [None, True, 5, 0.5, "", "text", "\udcff\n", [], ["a"], {}, {"\udcff": {"a": []}}]


@pytest.mark.parametrize("value", JSON)
def test_any_two_environments_can_be_compared(value: Any) -> None:
    now = describe_environment(EXPERIMENT, b"")
    differences(value, now)
    for part in now:
        changed = now | {part: value}
        for line in differences(changed, now):
            line.encode()
            assert "\n" not in line
        free = part in ("platform", "command", "working_directory") or value == now[part]
        # Earlier versions have not recorded the extensions.
        free |= part == "extensions" and value is None
        assert free or differences(changed, now)


def test_differences_name_what_has_changed(tmp_path: Path) -> None:
    now = describe_environment(EXPERIMENT, b"")
    before = now | {"cores": 64, "packages": now["packages"] | {"tensorflow": "2.20.0"}}
    before["git"] = now["git"] | {"uncommitted": "another"}
    before["devices"] = ["long"] * 1000
    found = differences(before, now)
    assert found[0] == f"tensorflow 2.20.0 is now {now['packages']['tensorflow']}"
    assert found[1] == f"cores 64 is now {now['cores']}"
    assert found[3:] == ["the code is at another commit, or has been edited"]
    assert all(len(line) < 300 for line in found)
    same_name = now | {"extensions": [*now["extensions"], "other_instructions"]}
    assert differences(same_name, now) == ["the processors differ in other_instructions"]
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert len(differences(now | {"cpu": nested}, now)) == 1
