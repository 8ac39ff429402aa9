"""What the directory of a comparison says about it: read within milliseconds."""

from __future__ import annotations

import dataclasses
import datetime
import os
from pathlib import Path

from research.comparing.comparison import COMPARISONS, QUESTION, open_comparison
from research.comparing.report import again, read_verdict
from research.errors import one_line
from research.recording.run_directory import is_locked

# The --most-pairs of a comparison that has not said it yet.
MOST_PAIRS = 40


@dataclasses.dataclass(frozen=True)
class ComparisonSummary:
    """What is known about a comparison.

    Attributes:
        directory: its directory.
        status: as a run's; ``finished`` with a verdict, or with as many pairs as were asked for.
        reason: what is damaged.
        arms: the arms' names, the baseline's first.
        experiments: the names of the arms' experiments.
        pairs: number of pairs that count.
        verdicts: the verdict on each challenger.
        began: when it began, in ISO 8601 with the time zone.
        seconds: of all its own trainings together.
        go_on: the command that goes on with it.
    """

    directory: Path
    status: str
    reason: str = ""
    arms: list[str] = dataclasses.field(default_factory=list)
    experiments: list[str] = dataclasses.field(default_factory=list)
    pairs: int = 0
    verdicts: list[str] = dataclasses.field(default_factory=list)
    began: str | None = None
    seconds: float | None = None
    go_on: str | None = None


def summarize_comparison(directory: Path) -> ComparisonSummary:
    """Summarizes the directory of a comparison, whatever state it is in."""
    try:
        locked, there = is_locked(directory), open_comparison(directory)
        began = datetime.datetime.fromtimestamp((directory / QUESTION).stat().st_mtime)
        known = ComparisonSummary(
            directory,
            "running" if locked else "killed",
            arms=there.names,
            experiments=[Path(arm["file"]).stem for arm in there.arms],
            began=began.astimezone().isoformat(timespec="seconds"),
        )
        most = MOST_PAIRS
        if os.path.lexists(directory / "verdict.json"):
            verdict = read_verdict(directory)
            findings, most = verdict["findings"], verdict["question"]["most_pairs"]
            known = dataclasses.replace(
                known,
                pairs=max(finding["pairs"] for finding in findings),
                verdicts=[finding["verdict"] for finding in findings],
                seconds=verdict["cost"]["training_seconds"],
            )
            ended = "undecided" not in known.verdicts or known.pairs >= most
            # Only a comparison that ends or stops by itself adds the wall time.
            by_itself = "stopped" if "wall_seconds" in verdict["cost"] else "killed"
            if not locked:
                known = dataclasses.replace(known, status="finished" if ended else by_itself)
        if known.status != "finished":
            usual = directory.absolute().parent == COMPARISONS.absolute()
            go_on = again(there, most, None if usual else directory)
            known = dataclasses.replace(known, go_on=go_on)
        return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return ComparisonSummary(directory, "damaged", one_line(error)[:200])
