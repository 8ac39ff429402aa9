"""TensorFlow's log messages go to the log only; a step's output is shown."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from research.stderr import DivertedStderr, occupy_standard_descriptors, show_error

import pytest

MUTTERED = (
    "2026-01-01 10:00:00.000000: I tensorflow/core/x.cc:1] hello",
    "2026-01-01 10:00:00.000000: W tensorflow/core/framework/op_kernel.cc:1] INVALID_ARGUMENT: x",
    "\t [[{{function_node __inference_one_step_1}}{{node GatherV2}}]]",
    "\t [[{{node while/body/_1/Conv2D}}]]",
    "WARNING:absl:You are saving your model",
)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Restores standard input, output and error after the test."""
    saved = [os.dup(number) for number in range(3)]
    yield
    for number, descriptor in enumerate(saved):
        os.dup2(descriptor, number)
        os.close(descriptor)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_standard_stream_that_is_closed_is_no_other_file(
    closed: tuple[int, ...], descriptors: None
) -> None:
    for number in closed:
        os.close(number)
    occupy_standard_descriptors()
    with Path(os.devnull).open() as file:
        assert file.fileno() > 2
    for number in closed:
        assert os.path.sameopenfile(number, os.open(os.devnull, os.O_RDWR))
        assert os.get_inheritable(number)


def test_muttering_is_in_the_log_alone_and_prints_on_the_screen_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    log, shown = tmp_path / "log.txt", list[bytes]()
    with DivertedStderr(shown.append) as stderr:
        assert list((tmp_path / "temporary").iterdir()) == []  # a crash leaves nothing behind
        for part in ("before", "after"):
            for line in (*MUTTERED, f"seen {part}"):
                os.write(2, f"{line}\n".encode())
            stderr.write(f"own {part}")
            if part == "before":
                stderr.continue_in(log)
    assert shown == [b"seen before\n", b"seen after\n"]
    lines = log.read_text().splitlines()
    for part in ("before", "after"):
        assert f"seen {part}" in lines
        assert lines.count(f"own {part}") == 1
    assert [lines.count(line) for line in MUTTERED] == [2] * len(MUTTERED)
    assert capfd.readouterr().err == ""


def test_standard_error_that_can_not_be_written_ends_nothing(
    tmp_path: Path, descriptors: None
) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    show_error("error: nobody sees it")
    with DivertedStderr() as stderr:
        stderr.continue_in(tmp_path / "log.txt")
        os.write(2, b"tf.print\n")
    assert "tf.print" in (tmp_path / "log.txt").read_text().splitlines()
