"""Trains the pairs of a comparison, in the order of their seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from research.comparing.cluster import Engine
from research.comparing.comparison import Comparison
from research.comparing.trainings import Ended
from research.errors import StorageError


def train(
    comparison: Comparison,
    trainers: Engine,
    most_pairs: int,
    wanted: Callable[[int, int], bool],
) -> Iterator[Ended | None]:
    """Trains what is missing, in the order of the seeds, until the caller has seen enough.

    Args:
        comparison: the comparison, locked.
        trainers: run the trainings.
        most_pairs: number of seeds.
        wanted: whether an arm's training with a seed is still of use.

    Yields:
        Each training that has ended, and None about once a second.

    Raises:
        StorageError: if a training fails for another reason than a value that became non-finite.
    """
    first = comparison.fields["first_seed"]
    tasks = (
        (arm, seed) for seed in range(first, first + most_pairs) for arm in comparison.order(seed)
    )
    exhausted, news = False, None
    while True:
        while trainers.has_room() and not exhausted:
            key = next(tasks, None)
            if key is None:
                exhausted = True
            elif wanted(*key) and comparison.outcome(*key) is None:
                trainers.start(comparison.task(*key))
        if exhausted and not trainers.running and news is None:
            return
        for ended in trainers.wait(1):
            if comparison.outcome(*ended.task.key) is None:
                why = f"{last_words(ended)}; see {ended.task.output}, then give the command again"
                raise StorageError(why)
            comparison.record(ended)
            news = ended
        # A training whose results are there ends in a moment; its cost is to be recorded, too.
        if any(comparison.outcome(*key) for key in trainers.running):
            yield None
        else:
            yield news
            news = None


def last_words(ended: Ended) -> str:
    """Why a training failed, in one line."""
    try:
        lines = ended.task.output.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    said = " ".join(lines[starts[-1] :] if starts else lines[-1:]).removeprefix("error: ")
    return f"{ended.task.name}: {' '.join(said.split())[:500] or 'it said nothing'}"
