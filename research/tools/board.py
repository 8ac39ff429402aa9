"""The verb ``board``: starts TensorBoard on all runs or on some."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.errors import InputError, one_line
from research.files import storage_errors
from research.recording.tensorboard import write_columns
from research.screen import Screen
from research.stderr import silenced_stderr
from research.tools.named_runs import Found, cut, different_values, find_runs, names_of
from research.verbs import Board

import tensorflow as tf
from tensorboard import default, program
from tensorboard.data import server_ingester

# The number of points that TensorBoard keeps of each tag; of more it keeps a random sample.
SAMPLES = "scalars=5000,images=50,histograms=100,pr_curves=50,text=100"


# How often new runs are looked for.
SECONDS_BETWEEN_LOOKS = 5

# Which rows of TensorBoard's lists have curves that matter: the run itself has none, and the test
# set has one point. The groups in the other expression share a colour.
CURVES = "/(train|validation)$|bands/"
COLOURS = r"([^ /]+)/(train|validation|test)$|bands/(.+)$"
PINNED = ("loss", "accuracy", "rescaled/log10_loss", "rescaled/validation_accuracy")


def run(asked: Board, screen: Screen) -> None:
    """Serves until it is interrupted.

    Raises:
        InputError: if a path holds no run, or the host or port can't be used.
    """
    roots = asked.runs or (Path("runs"),)
    for path in roots:
        if not os.path.isdir(path) or next(find_runs([path]), None) is None:
            raise InputError(
                f"{path}: holds no run; name a run directory, or train one first: "
                "python experiments/mnist_cnn.py --epochs 1"
            )
    _require_listenable(asked.host)
    # Before there is a directory that they must remove.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    folder = Path(os.environ.get("TMPDIR") or "/tmp")
    with (
        contextlib.suppress(KeyboardInterrupt),  # the usual end, at whatever moment
        storage_errors(folder, tf.errors.OpError),
        tempfile.TemporaryDirectory(prefix="research-board-") as temporary,
    ):
        links = Links(Path(temporary))
        links.update(roots)
        board = program.TensorBoard(default.get_plugins())
        options = ["--logdir", temporary, "--host", asked.host]
        options += ["--samples_per_plugin", SAMPLES, "--load_fast", _fast_reader()]
        options += [] if asked.port is None else ["--port", str(asked.port)]
        board.configure(["tensorboard", *options])
        try:
            address = board.launch()
        except (program.TensorBoardServerException, OSError) as error:
            where = f"--host {asked.host}" if asked.port is None else f"--port {asked.port}"
            raise InputError(f"{where}: {one_line(error)}; give another") from error
        screen.say(f"TensorBoard is at {address} (Ctrl-C ends it)")
        profiled = any(Path(temporary, "plugins", "profile").iterdir())
        for what, link in start_pages(address, profiled).items():
            screen.say(f"{what}: {link}")
        screen.say('An open page follows a training once "Reload data" is on: the gear, top right.')
        # The viewer of profiles logs every request to standard error.
        with silenced_stderr():
            while True:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                links.update(roots)


def start_pages(address: str, profiled: bool) -> dict[str, str]:
    """Links that open on what matters, by what they show.

    Args:
        address: TensorBoard's address.
        profiled: whether there is a profile; its overview page works on accelerators only.
    """
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    keys = {
        "smoothing": "0",
        "runFilter": CURVES,
        "runColorGroup": f"regex:{COLOURS}",
        "pinnedCards": json.dumps(cards, separators=(",", ":")),
    }
    query = urllib.parse.urlencode(keys, quote_via=urllib.parse.quote)
    shown = urllib.parse.quote(CURVES, safe="")
    pages = {
        "At a glance": f"{address}#custom_scalars&_smoothingWeight=0&regexInput={shown}",
        "Loss and accuracy": f"{address}?{query}#timeseries",
    }
    return pages | ({"Profile": f"{address}?tool=trace_viewer%40#profile"} if profiled else {})


def columns(runs: Sequence[Found]) -> dict[str, list[Any]]:
    """The options that HParams has columns for, with their different values."""
    experiments = sorted({str(run.config["experiment"]) for run in runs if run.config})
    return {"experiment": experiments} | different_values(runs)


class Links:
    """A directory of links to runs, under names that tell the runs apart, and of HParams' columns.

    A run keeps its name as long as this directory lasts.

    Args:
        folder: an empty directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._linked: dict[Path, Path] = {}  # the link by what it leads to
        self._columns = 0  # how often they have been written
        (folder / "plugins" / "profile").mkdir(parents=True)

    def update(self, roots: Sequence[Path]) -> None:
        """Adds links to what is new in some directories, and removes those to what is gone."""
        for path, link in list(self._linked.items()):
            if not path.exists():
                link.unlink()
                del self._linked[path]
        found = list(find_runs(roots))
        if any(run.path not in self._linked for run in found):
            for run, name in zip(found, names_of(found), strict=True):
                self._link(run.path, self._folder / name)
            self._write_columns(found)
        for run in found:
            # The viewer of profiles does not follow links to runs.
            for profile in run.path.glob("plugins/profile/*/"):
                name = f"{cut(self._linked[run.path].name, 180)} {cut(profile.name, 60)}"
                self._link(profile, self._folder / "plugins" / "profile" / name)

    def _write_columns(self, runs: Sequence[Found]) -> None:
        """Writes the columns of HParams, in place of earlier ones."""
        # TensorBoard keeps the first columns that it has read in a directory.
        earlier, self._columns = self._columns, self._columns + 1
        write_columns(self._folder / f"columns of HParams {self._columns}", columns(runs))
        shutil.rmtree(self._folder / f"columns of HParams {earlier}", ignore_errors=True)

    def _link(self, path: Path, place: Path) -> None:
        """Makes a link to a directory at a place, or beside it, unless there is one."""
        if path not in self._linked:
            free, number = place, 2
            while os.path.lexists(free):
                free, number = place.with_name(f"{number} {place.name}"), number + 1
            free.parent.mkdir(parents=True, exist_ok=True)
            free.symlink_to(path, target_is_directory=True)
            self._linked[path] = free


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
