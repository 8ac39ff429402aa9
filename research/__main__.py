"""The verbs of ``python -m research``, for experiments, runs and trained networks."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import sys

from research.config import (
    asks_for_help,
    parse_errors_in_one_line,
    refuse_unknown_options,
    require_working_directory,
)
from research.errors import InputError
from research.help import options_of, show_help
from research.screen import Screen, run_and_exit
from research.verbs import VERBS, Compare, Launch, Sweep, Verb, Verify

import tyro

PROGRAM = "python -m research"

# The verbs that hand the words behind -- to the experiments that they run.
WITH_OPTIONS = (["verify"], ["compare"], ["sweep"], ["launch"])


def main() -> None:
    """Runs one verb and exits as ``run_and_exit`` does; with 1 if the verb reports a failure."""
    run_and_exit(_work)


def _work(screen: Screen) -> int:
    """Runs the verb that the command line names; returns the exit status.

    Raises:
        SystemExit: with status 0, after ``--help`` has been printed.
    """
    with parse_errors_in_one_line():
        words, options = divide(sys.argv[1:])
        if words[:1] in (["-h"], ["--help"]):
            show_verbs()
            raise SystemExit(0)
        refuse_unknown(words)
        if asks_for_help(words):
            show_verb(words[0])
            raise SystemExit(0)
        verb: Verb = tyro.cli(Verb, args=words, prog=PROGRAM)
        if isinstance(verb, Verify | Compare | Sweep | Launch):
            verb = dataclasses.replace(verb, options=options)
    require_working_directory()
    return 1 if run(verb, screen) is False else 0


def run(verb: Verb, screen: Screen) -> bool | None:
    """Runs a verb; returns False if it reports a failure.

    The module that does it is imported here, and not for ``--help``: TensorFlow takes seconds.
    """
    tool = importlib.import_module(f"research.tools.{type(verb).__name__.lower()}")
    done: bool | None = tool.run(verb, screen)
    return done


def refuse_unknown(words: list[str]) -> None:
    """Refuses a first word that is no verb, and options that the verb does not have.

    Raises:
        InputError: with the verb or option that was probably meant.
    """
    known = f"the verbs are {', '.join(VERBS)}"
    if not words:
        raise InputError(f"no verb: name one; {known} (--help explains them)")
    if words[0] not in VERBS:
        similar = difflib.get_close_matches(words[0], VERBS, n=1)
        meant = f"did you mean {similar[0]}?" if similar else known
        raise InputError(f"{words[0]}: no such verb; {meant} (--help explains them)")
    behind = "options of the experiment stand behind --" if words[:1] in WITH_OPTIONS else ""
    refuse_unknown_options(VERBS[words[0]], words[1:], behind)


def show_verbs() -> None:
    """Prints a line and an example of every verb."""
    abouts = {name: getdoc(kind).split("\n\n") for name, kind in VERBS.items()}
    show_help(
        f"{PROGRAM} VERB ...",
        "Work on an experiment, or on what it has trained.",
        {"verbs": [(name, f"{line}\n{example}") for name, (line, example, *_) in abouts.items()]},
        f"Each verb explains itself: {PROGRAM} compare --help",
    )


def show_verb(name: str) -> None:
    """Prints what a verb does, its arguments and its options."""
    options = options_of(VERBS[name])
    arguments = [(o.words, o.explanation) for o in options if o.positional]
    others = [(o.words, o.explanation) for o in options if not o.positional]
    words = [*(words for words, _ in arguments), "[OPTIONS]"]
    if name == "launch":
        words = ["[OPTIONS]", "EXPERIMENT", "[ITS OPTIONS]"]
    usage = " ".join([PROGRAM, name, *words])
    show_help(usage, getdoc(VERBS[name]), {"arguments": arguments, "options": others})


def getdoc(kind: type) -> str:
    """The docstring of a verb."""
    return inspect.getdoc(kind) or ""


def divide(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words for a verb, and those for the experiments that it runs.

    These stand behind ``--``; or, of ``launch``, as of Python itself, behind the experiment's file.
    """
    if words[:1] == ["launch"] and "--" not in words:
        end = next((n for n, word in enumerate(words, 1) if word.endswith(".py")), len(words))
        return words[:end], tuple(words[end:])
    if words[:1] not in WITH_OPTIONS or "--" not in words:
        return words, ()
    place = words.index("--")
    return words[:place], tuple(words[place + 1 :])


if __name__ == "__main__":
    main()
