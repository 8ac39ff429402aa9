"""What the directory of a sweep says about it: read within milliseconds, without Optuna."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.comparing.page import with_sd
from research.comparing.question import Metric
from research.errors import one_line
from research.files import read_json, read_sealed_json
from research.recording.run_directory import is_locked
from research.sweeping.sweep import DECLARED, RESULTS, SWEEPS, command


@dataclasses.dataclass(frozen=True)
class SweepSummary:
    """What is known about a sweep.

    Attributes:
        directory: its directory.
        status: as a run's; ``finished`` when the best setting has been judged, if that was asked.
        reason: what is damaged.
        experiments: the experiment's name.
        over: the options that it tries, as they were given.
        trials: number of trials that have ended.
        of: number of trials that were asked for.
        best: the best setting so far, and its figure; empty without one.
        began: when it began, in ISO 8601 with the time zone.
        seconds: None, it is not recorded.
        go_on: the command that goes on with it.
    """

    directory: Path
    status: str
    reason: str = ""
    experiments: list[str] = dataclasses.field(default_factory=list)
    over: list[str] = dataclasses.field(default_factory=list)
    trials: int = 0
    of: int | None = None
    best: str = ""
    began: str | None = None
    seconds: float | None = None
    go_on: str | None = None


def summarize_sweep(directory: Path) -> SweepSummary:
    """Summarizes the directory of a sweep, whatever state it is in."""
    try:
        locked, fields = is_locked(directory), read_sealed_json(directory / DECLARED)
        began = datetime.datetime.fromtimestamp((directory / DECLARED).stat().st_mtime)
        known = SweepSummary(
            directory,
            "running" if locked else "killed",
            experiments=[Path(fields["experiment"]).stem],
            over=fields["over"],
            began=began.astimezone().isoformat(timespec="seconds"),
        )
        if os.path.lexists(directory / RESULTS):
            found = read_json(directory / RESULTS)
            known = dataclasses.replace(
                known, trials=found["ended"], of=found["trials"], best=_best(found)
            )
            if not locked and found["status"] != "running":
                known = dataclasses.replace(known, status=found["status"])
        if known.status != "finished":
            usual = directory.absolute().parent == SWEEPS.absolute()
            trials = None if fields["sampler"] == "grid" else known.of
            go_on = command(fields, trials, None if usual else directory)
            known = dataclasses.replace(known, go_on=go_on)
        return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return SweepSummary(directory, "damaged", one_line(error)[:200])


def _best(found: Mapping[str, Any]) -> str:
    """The best setting and its figure."""
    if not found["settings"] or found["settings"][0]["mean"] is None:
        return ""
    best, metric = found["settings"][0], Metric.parse(found["metric"])
    figure = with_sd(best["mean"], best["sd"], metric, "%" if metric.is_share else "")
    return f"{shlex.join(best['options'])}: {metric.name} {figure}"
