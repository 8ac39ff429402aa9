"""The reports of ``verify`` on experiments that are killed, resumed, and started again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import Config
from research.tools import verify_kills
from research.tools.check import Check
from research.tools.verify_kills import killed_and_resumed

import pytest
from conftest import RunHere

# This program takes half a second to make its directory a run directory.
PROGRAM = """
import os, pathlib, signal, sys, time

resume = "--resume" in sys.argv
run = pathlib.Path(sys.argv[-1])
{first}
time.sleep(0 if resume else 0.5)
(run / "checkpoints").mkdir(exist_ok=True)
(run / "checkpoints" / "step-00000000.safetensors").touch()
"""


@pytest.fixture
def kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Check]]:
    """A function that kills a program with these first lines; its results are not compared."""
    monkeypatch.setattr(verify_kills, "left_by", lambda run: {})
    (tmp_path / "folder").mkdir()

    def kill(first: str, **options: Any) -> list[Check]:
        (tmp_path / "program.py").write_text(PROGRAM.format(first=first))
        chosen = {"kills": 0, "stops": 0, "seed": 0} | options
        return list(
            killed_and_resumed(
                *(tmp_path / "program.py", [], Config()),
                **chosen,
                folder=tmp_path / "folder",
                say=print,
            )
        )

    return kill


@pytest.mark.parametrize(
    ("first", "holds"),
    [
        ("if resume or run.exists():\n    sys.exit('error: no')\nrun.mkdir()", False),
        ("if resume or run.exists():\n    print('error: no') or sys.exit(2)\nrun.mkdir()", False),
        ("if resume:\n    print('error: no') or sys.exit(2)\nrun.mkdir(exist_ok=True)", True),
        ("run.mkdir(exist_ok=True)", True),
    ],
)
def test_a_run_that_is_refused_after_a_kill_is_a_dead_end(
    first: str, holds: bool, kill: Callable[..., list[Check]]
) -> None:
    # With this seed the run is killed as soon as its directory exists.
    (check,) = kill(first, kills=1, seed=1)
    assert check.holds == holds, check
    assert check.found.endswith("1 killed: 1 creating the directory")
    if "exit(2)" in first and not holds:
        end = "it holds nothing. Resumed: error: no Started again: error: no"
        assert end in check.found


def test_when_signals_do_not_land_it_gives_up_and_says_so(
    kill: Callable[..., list[Check]],
) -> None:
    ignore = "for n in (1, 2, 10, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\n"
    (check,) = kill(ignore + "run.mkdir(exist_ok=True)", stops=1)
    assert not check.holds
    assert check.found.startswith("only 0 of 1 signal landed in time (7 runs, ")


def test_a_run_that_hangs_is_ended_and_named(kill: Callable[..., list[Check]]) -> None:
    (check,) = kill("print('so far so good', flush=True)\ntime.sleep(1000)", stops=1, seconds=2)
    assert not check.holds
    assert check.found.startswith("a run that is not interrupted hangs: it was ended after 2 sec")
    assert "--minutes gives it more. ...so far so good" in check.found


@pytest.mark.slow
@pytest.mark.parametrize(("stops", "sent"), [("0", "1 killed: "), ("1", "1 killed, 1 stopped: ")])
def test_killed_at_random_moments_runs_and_forks_end_as_if_uninterrupted(
    stops: str, sent: str, data_file: Path, run_here: RunHere
) -> None:
    verify = ("verify", "--only-kills", "--json", "--data", data_file)
    result = run_here("research", *verify, "--kills", "2", "--stops", stops)
    assert result.status == 0, result.stdout + result.stderr
    runs, forks = json.loads(result.stdout)
    assert runs["found"].startswith(sent)
    assert forks["found"].startswith("1 killed: ")
