"""The verbs of ``python -m research``, for experiments, runs and trained networks."""

from __future__ import annotations

import dataclasses
import importlib
import sys

from research.config import parse_errors_in_one_line, require_working_directory
from research.errors import InputError, NonFiniteError, StorageError, one_line
from research.screen import Screen
from research.stderr import show_error
from research.verbs import Compare, Verb, Verify

import tyro

# The verbs that hand the words behind -- to the experiments that they run.
WITH_OPTIONS = (["verify"], ["compare"])


def main() -> None:
    """Runs one verb and exits: with status 2 and one line of explanation after bad input.

    The status is 1 if a file or the answer can't be written, or the verb reports a failure.
    """
    status, message = 0, ""
    with Screen() as screen:
        try:
            with parse_errors_in_one_line():
                words, options = divide(sys.argv[1:])
                verb: Verb = tyro.cli(
                    Verb,
                    args=words,
                    prog="python -m research",
                    description="Work on an experiment, or on what it has trained.",
                )
                if isinstance(verb, Verify | Compare):
                    verb = dataclasses.replace(verb, options=options)
            require_working_directory()
            status = 1 if run(verb, screen) is False else 0
        except (InputError, NonFiniteError) as error:
            status, message = 2, one_line(error)
            if sys.argv[1:2] in WITH_OPTIONS and message.startswith("Unrecognized options"):
                message += "; options for the experiment stand behind --"
        except StorageError as error:
            status, message = 1, str(error)
        except SystemExit as stop:
            if stop.code:
                raise
        except KeyboardInterrupt:
            status = 130
        if not status and (message := screen.output_error()):
            status = 1
    if message:
        show_error(f"error: {message}")
    sys.exit(status)


def run(verb: Verb, screen: Screen) -> bool | None:
    """Runs a verb; returns False if it reports a failure.

    The module that does it is imported here, and not for ``--help``: TensorFlow takes seconds.
    """
    tool = importlib.import_module(f"research.tools.{type(verb).__name__.lower()}")
    done: bool | None = tool.run(verb, screen)
    return done


def divide(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words for a verb, and the words behind ``--``: options for the experiments it runs."""
    if words[:1] not in WITH_OPTIONS or "--" not in words:
        return words, ()
    place = words.index("--")
    return words[:place], tuple(words[place + 1 :])


if __name__ == "__main__":
    main()
