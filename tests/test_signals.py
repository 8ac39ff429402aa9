"""A signal asks a run to stop: it saves a checkpoint, ends with 128 + n, and can be resumed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from research.signals import SIGNALS, StopRequest
from research.tools.verify_kills import left_by

import pytest
from conftest import EXPERIMENTS, RunHere, run_python


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU"])
def test_a_signal_asks_to_stop_and_decides_the_exit_status(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    number, left = signal.Signals[name], list[bool]()
    with StopRequest() as stop:
        with stop.leaving():
            os.kill(os.getpid(), number)
            left.append(False)
        assert not left
        os.kill(os.getpid(), signal.SIGTERM)  # a second signal changes nothing
    assert (stop.signal, stop.exit_status) == (number, 128 + number)
    os.kill(os.getpid(), number)  # signals stay ignored until the interpreter ends
    assert capfd.readouterr().out == f"\nStopping after {name}.\n"


def test_under_nohup_a_lost_terminal_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_ctrl_c_ends_a_download_at_once(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(say: object) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the download goes on")

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    monkeypatch.setattr("research.experiment.load_mnist", download)
    result = run_here(EXPERIMENTS / "mnist_cnn.py")
    assert (result.status, list(tmp_path.iterdir())) == (130, [])
    assert result.stderr == "error: interrupted before training began; nothing is lost\n"


def stopping(folder: Path, name: str) -> Path:
    """An experiment that sends itself a signal in its step 14."""
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    send = f"os.kill(os.getpid(), {signal.Signals[name].value})"
    line = f"    tf.py_function(lambda step: {send} if step == 13 else None, [state.step], [])\n"
    text = text.replace("    with tf.GradientTape()", f"{line}    with tf.GradientTape()")
    path = folder / "mnist_cnn.py"
    path.write_text(text.replace("import annotations", "import annotations\nimport os", 1))
    return path


OPTIONS = (
    *("--epochs", "3", "--batch-size", "32", "--log-every", "4", "--holdout", "50", "--test"),
    *("--dense-width", "16", "--steps-per-call", "1", "--run-dir", "run"),
)


@pytest.mark.parametrize("name", ["SIGHUP", pytest.param("SIGXCPU", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_goes_on_as_if_uninterrupted(
    name: str, data_file: Path, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    options = ("--data", data_file, *OPTIONS)
    result = run_here(stopping(tmp_path, name), *options)
    assert (result.status, result.stderr) == (128 + signal.Signals[name], "")
    assert f"Stopped by {name} after step 14 of 24. Go on: " in result.stdout
    assert run_here(EXPERIMENTS / "mnist_cnn.py", "--resume", "run").status == 0
    assert left_by(tmp_path / "run") == left_by(finished_run)


# This program runs without a temporary directory, a home directory, and a user name.
BARE = """
import os, pwd, runpy, sys, tempfile
def unknown(user): raise KeyError(user)
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
os.environ.pop("KERAS_HOME", None)
sys.argv = sys.argv[1:]
if sys.argv[0].startswith("closed"):
    os.closerange(0, 3)
    sys.stdin = sys.stdout = sys.stderr = None
    del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no memory to write to")
def test_a_run_stops_and_leaves_its_files_whole_where_hardly_anything_is_open_or_writable(
    data_file: Path, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    options = ("--data", data_file, *OPTIONS)
    experiment = stopping(tmp_path, "SIGTERM")
    result = run_python("-c", BARE, "closed", experiment, *options, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (143, "", "")
    assert "Stopped by SIGTERM after step 14" in (tmp_path / "run" / "log.txt").read_text()
    for path in (tmp_path / "run").rglob("*"):
        assert (
            path.is_dir()
            or path.name == "log.txt"
            or b"Stopped by SIGTERM" not in path.read_bytes()
        )
    assert run_here(EXPERIMENTS / "mnist_cnn.py", "--resume", "run").status == 0
    assert left_by(tmp_path / "run") == left_by(finished_run)
