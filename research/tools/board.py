"""The verb ``board``: starts TensorBoard on all runs or on some."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from research.errors import InputError, one_line
from research.screen import Screen
from research.stderr import silenced_stderr
from research.verbs import Board

from tensorboard import default, program
from tensorboard.data import server_ingester

# The number of points that TensorBoard keeps of each tag; of more it keeps a random sample.
SAMPLES = "scalars=5000,images=50,histograms=100,pr_curves=50,text=100"


def run(asked: Board, screen: Screen) -> None:
    """Serves until it is interrupted.

    Raises:
        InputError: if a path holds no run, or the host or port can't be used.
    """
    for path in asked.runs or (Path("runs"),):
        if not os.path.isdir(path) or next(path.rglob("events.out.tfevents.*"), None) is None:
            raise InputError(
                f"{path}: holds no run; name a run directory, or train one first: "
                "python experiments/mnist_cnn.py --epochs 1"
            )
    with _log_directory(asked.runs) as folder:
        board = program.TensorBoard(default.get_plugins())
        options = ["--logdir", str(folder), "--host", asked.host]
        options += ["--samples_per_plugin", SAMPLES, "--load_fast", _fast_reader()]
        options += [] if asked.port is None else ["--port", str(asked.port)]
        board.configure(["tensorboard", *options])
        _require_listenable(asked.host)
        try:
            address = board.launch()
        except (program.TensorBoardServerException, OSError) as error:
            where = f"--host {asked.host}" if asked.port is None else f"--port {asked.port}"
            raise InputError(f"{where}: {one_line(error)}; give another") from error
        screen.say(f"TensorBoard is at {address} (Ctrl-C ends it)")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # The viewer of profiles logs every request to standard error.
        with contextlib.suppress(KeyboardInterrupt), silenced_stderr():
            threading.Event().wait()


def _require_listenable(host: str) -> None:
    """Refuses a host for which TensorBoard's server would print a line and exit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as TensorBoard chooses
    try:
        *_, address = socket.getaddrinfo(host, 0, family, socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.bind(address)
    except OSError as error:
        raise InputError(f"--host {host}: {one_line(error)}; give another") from error


def _fast_reader() -> str:
    """Whether TensorBoard's fast reader is installed. Left to find out, it prints a long notice."""
    try:
        server_ingester.get_server_binary()
    except server_ingester.NoDataServerError:
        return "false"
    return "true"


@contextlib.contextmanager
def _log_directory(runs: tuple[Path, ...]) -> Iterator[Path]:
    """A directory with links to the runs, each with a name of its own."""
    if not runs:
        yield Path("runs")
        return
    with tempfile.TemporaryDirectory(prefix="research-board-") as temporary:
        profiles = Path(temporary, "plugins", "profile")
        profiles.mkdir(parents=True)
        for run in (path.resolve() for path in runs):
            place = Path(temporary, *(run.parts[1:][-2:] or ("root",)))
            number = 2
            while os.path.lexists(place):
                place, number = place.with_name(f"{run.name}-{number}"), number + 1
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(run, target_is_directory=True)
            # The viewer of profiles does not follow links to runs.
            for profile in run.rglob("plugins/profile/*/"):
                name = place.relative_to(temporary) / profile.relative_to(run)
                link = profiles / "-".join(p for p in name.parts if p not in ("plugins", "profile"))
                link.symlink_to(profile, target_is_directory=True)
        yield Path(temporary)
