"""How many steps a call of the compiled function runs, as a table of cases."""

from __future__ import annotations

from typing import Any

from research.data.batches import Plan
from research.training.train import Call, next_call

import pytest

PLAN = Plan(examples=100, batch_size=10, epochs=2.5)  # 10 steps an epoch, 25 in all


@pytest.mark.parametrize(
    ("done", "options", "steps", "reaches", "looked_at"),
    [
        # The last step before a report that is due has a call to itself.
        (0, {}, 5, False, False),
        (5, {}, 1, False, False),
        (6, {}, 1, True, True),
        # No call runs more steps than it may.
        (0, {"at_most": 4}, 4, False, False),
        (4, {"at_most": 4}, 2, False, False),
        # An epoch's end, and the plan's, come before the next regular report.
        (7, {}, 2, False, False),
        (9, {}, 1, True, True),
        (21, {}, 3, False, False),
        (24, {}, 1, True, True),
        # An early report is made where it is asked for, and nothing is looked at.
        (0, {"early_every": 3}, 3, True, False),
        (3, {"early_every": 3}, 3, True, False),
        (5, {"early_every": 6}, 1, True, False),
        # Training may end before anything is due.
        (0, {"until": 2}, 2, True, False),
        (0, {"until": 7}, 6, False, False),
        # With a report after every step each has its own call.
        (3, {"report_every": 1}, 1, True, True),
    ],
)
def test_a_call_ends_where_there_is_something_to_do(
    done: int, options: dict[str, Any], steps: int, reaches: bool, looked_at: bool
) -> None:
    chosen: dict[str, Any] = {"until": PLAN.steps, "report_every": 7, "at_most": 5} | options
    if "at_most" not in options:
        chosen["at_most"] = 100 if "until" in options else 5
    assert next_call(done, PLAN, **chosen) == Call(steps, reaches, looked_at)


@pytest.mark.parametrize("report_every", [1, 3, 7, 100])
@pytest.mark.parametrize("at_most", [1, 2, 100])
@pytest.mark.parametrize("early_every", [None, 4])
def test_the_calls_of_a_training_cover_every_step_once(
    report_every: int, at_most: int, early_every: int | None
) -> None:
    done, looked_at = 0, []
    while done < PLAN.steps:
        call = next_call(
            done,
            PLAN,
            until=PLAN.steps,
            report_every=report_every,
            early_every=early_every,
            at_most=at_most,
        )
        assert 1 <= call.steps <= at_most
        done += call.steps
        if call.looked_at:
            looked_at.append(done)
    assert done == PLAN.steps
    due = {s for s in range(1, 26) if s % report_every == 0 or PLAN.ends_epoch(s)}
    assert looked_at == sorted(due)
