"""A failing screen ends no training; an answer that can't be printed is an error in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from research.data.batches import Plan
from research.recording.progress import TrainingProgress
from research.screen import Screen
from research.training.train import LastStep, Report

import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere
from rich.table import Table


@contextlib.contextmanager
def broken(descriptor: int, how: str) -> Iterator[None]:
    """Makes writing to a descriptor fail."""
    if how == "full":
        broken = os.open("/dev/full", os.O_WRONLY)
    else:
        other, broken = os.openpty() if how == "terminal" else os.pipe()
        os.close(other)
    before = os.dup(descriptor)
    os.dup2(broken, descriptor)
    os.close(broken)
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


REPORT = Report(
    step=1,
    epoch=1,
    epoch_ended=True,
    metrics={"loss": 1.0},
    history={},
    last_step=LastStep(np.array([0]), {}, {}),
    examples=1,
    seconds=1.0,
)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [("full", "No space left on device"), ("terminal", "Input/output error"), ("reader", "")],
)
@pytest.mark.parametrize("descriptor", [1, 2])
def test_what_can_not_be_shown_is_in_the_log(
    how: str, complaint: str, descriptor: int, tmp_path: Path
) -> None:
    with broken(descriptor, how), Screen() as screen:
        screen.say("said before")
        screen.log_to(tmp_path / "log.txt")
        screen.console.print(Table("a"))
        with TrainingProgress(screen, Plan(2, 2, 2)) as progress:
            progress.show(REPORT)
            screen.say("said later")
            print("printed")
            print("a warning", file=sys.stderr, flush=True)
            os.write(2, b"tf.print\n")
        assert (complaint in screen.output_error()) == (descriptor == 1 or not complaint)
        assert bool(screen.output_error()) == (descriptor == 1 and complaint != "")
    log = (tmp_path / "log.txt").read_text()
    for words in ("said before", "said later", "a warning", "tf.print"):
        assert words in log


def test_a_stream_that_another_program_made_non_blocking_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        with Screen() as screen:
            pid = os.fork()
            if not pid:  # reads the output that the pipe can't hold
                os.closerange(1, 3)
                while os.read(reader, 1 << 16):
                    pass
                os._exit(0)
            print("x" * 300_000)
            assert screen.output_error() == ""
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert os.waitpid(pid, 0)[1] == 0


def test_signs_that_the_encoding_lacks_are_shown_otherwise(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        with Screen() as screen:
            screen.say("caf\N{LATIN SMALL LETTER E WITH ACUTE} r\udce9")
            screen.console.print(Table("a"))
    shown = capfd.readouterr().out
    assert shown.splitlines()[0] == r"caf\xe9 r\udce9"
    assert shown.isascii()
    assert "\\u" not in shown.split("\n", 1)[1]  # the table is drawn with - and |


@pytest.mark.parametrize(
    "how", ["full", pytest.param("terminal", marks=pytest.mark.slow), "reader"]
)
def test_a_training_whose_output_can_not_be_written_reaches_its_end(
    how: str, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    options = ("--data", data_file, "--epochs", "1", "--batch-size", "100", "--run-dir", "run")
    with broken(1, how):
        result = run_here(EXPERIMENTS / "mnist_cnn.py", *options, "--dense-width", "8")
    assert (result.status, result.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["steps"] == 3
    assert "Test accuracy: " in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [("full", 1, r"error: standard output can't be written \(No space .*\)\n"), ("reader", 0, "")],
)
@pytest.mark.parametrize(
    "command", ["mnist_cnn.py --help", "research --help", "research evaluate RUN --json"]
)
def test_an_answer_that_does_not_arrive(
    command: str, how: str, status: int, message: str, finished_run: Path, run_here: RunHere
) -> None:
    program, *arguments = command.replace("RUN", str(finished_run)).split()
    path = EXPERIMENTS / program
    with broken(1, how):
        result = run_here(path if path.exists() else program, *arguments)
    assert result.status == status
    assert re.fullmatch(message, result.stderr), result.stderr


def test_bad_input_keeps_its_status_where_nobody_reads_the_message(run_here: RunHere) -> None:
    with broken(2, "full"):
        assert run_here(EXPERIMENTS / "mnist_cnn.py", "--epochs", "0").status == 2
        assert run_here("research", "evaluate", "nowhere").status == 2
