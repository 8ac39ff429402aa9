"""The verbs that work on what was trained: ``python -m research --help``."""

from __future__ import annotations

import sys

from research.config import parse_errors_in_one_line
from research.errors import InputError, NonFiniteError
from research.recording.screen import Screen
from research.tools.bench import Bench
from research.tools.board import Board
from research.tools.evaluate import Evaluate
from research.tools.predict import Predict
from research.tools.replay import Replay
from research.tools.verify import Verify

import tyro


def main() -> None:
    """Runs one verb; exits with status 2 and one line of explanation after bad input."""
    message = ""
    with Screen() as screen:
        try:
            with parse_errors_in_one_line():
                verb: Evaluate | Predict | Verify | Replay | Bench | Board = tyro.cli(
                    Evaluate | Predict | Verify | Replay | Bench | Board,
                    prog="python -m research",
                    description="Work on an experiment, or on what it has trained.",
                )
            holds = verb.run(screen)
        except (InputError, NonFiniteError) as error:
            message = f"error: {error}"
        except KeyboardInterrupt:
            sys.exit(130)
    if message:
        print(message, file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if holds is False else 0)


if __name__ == "__main__":
    main()
