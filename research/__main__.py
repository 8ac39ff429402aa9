"""The verbs that work on what was trained: ``python -m research --help``."""

from __future__ import annotations

import sys

from research.config import parse_errors_in_one_line
from research.errors import InputError, NonFiniteError, StorageError
from research.recording.screen import Screen
from research.tools.bench import Bench
from research.tools.board import Board
from research.tools.evaluate import Evaluate
from research.tools.predict import Predict
from research.tools.replay import Replay
from research.tools.verify import Verify

import tyro


def main() -> None:
    """Runs one verb; exits with one line of explanation and status 2 after bad input.

    Where a file can't be written the status is 1.
    """
    status, message = 2, ""
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
        except StorageError as error:
            status, message = 1, f"error: {error}"
        except KeyboardInterrupt:
            sys.exit(130)
    if message:
        print(message, file=sys.stderr)
        sys.exit(status)
    sys.exit(1 if holds is False else 0)


if __name__ == "__main__":
    main()
