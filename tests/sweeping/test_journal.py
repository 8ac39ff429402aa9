"""Optuna's journal: the same trials whatever is killed, and pruning replayed on curves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from research.comparing.question import Metric
from research.errors import StorageError
from research.network.mnist_cnn import Config
from research.sweeping.journal import JOURNAL, Journal
from research.sweeping.space import Setting, parse_space

import numpy as np
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pruning import replayed

LOWEST_ERROR = Metric.parse("error")
SPACE = parse_space(["learning_rate=0.1..10:log", "decay=linear,cosine"], Config, [], "mnist_cnn")


def opened(folder: Path, sampler: str = "random", seed: int = 0) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(folder, SPACE, LOWEST_ERROR, sampler, seed)


def test_random_trials_depend_on_the_seed_alone_whatever_is_killed(tmp_path: Path) -> None:
    undisturbed = opened(tmp_path / "undisturbed")
    expected = [undisturbed.ask()[1] for _ in range(6)]
    assert all(0.1 <= float(each["learning_rate"]) <= 10 for each in expected)

    # Another process for each trial; the results come late, or not; writing is cut off.
    found: list[Setting] = []
    path = tmp_path / "killed" / JOURNAL
    for number in range(6):
        journal = opened(tmp_path / "killed")
        assert [trial.params for trial in journal.trials()] == found
        asked, setting = journal.ask()
        assert asked == number
        found.append(setting)
        if number % 2:
            journal.tell(number - 1, None if number == 3 else 0.1 * number)
        with path.open("ab") as file:
            file.write(b'{"op_code": 4, "wor')
        path.with_name(f"{JOURNAL}.lock").touch()
    assert found == expected
    assert opened(tmp_path / "other", seed=1).ask()[1] != expected[0]
    states = [trial.state for trial in opened(tmp_path / "killed").trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING] * 3


def test_a_full_disk_is_told_and_the_journal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path / "sweep").ask()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", no_room)
        with pytest.raises(StorageError, match=r"journal.log: can't be written \(No space .* room"):
            opened(tmp_path / "sweep")
    journal = opened(tmp_path / "sweep")
    assert len(journal.trials()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", no_room)
        for write in (journal.ask, lambda: journal.tell(0, 0.5), lambda: journal.report(0, 1, 0.5)):
            with pytest.raises(StorageError, match="make room"):
                write()
    journal.tell(0, 0.5)
    assert [trial.value for trial in opened(tmp_path / "sweep").trials()] == [0.5]


def test_tpe_finds_a_better_setting_than_chance_and_names_the_option_that_matters(
    tmp_path: Path,
) -> None:
    def later(sampler: str) -> tuple[float, dict[str, float]]:
        journal = opened(tmp_path / sampler, sampler)
        for number in range(30):
            asked, setting = journal.ask()
            assert asked == number
            journal.tell(asked, abs(np.log10(float(setting["learning_rate"])) - 0.5))
        values = [trial.value or 0.0 for trial in journal.trials()]
        return float(np.mean(values[-10:])), journal.importances()

    tpe, importances = later("tpe")
    assert tpe < later("random")[0] / 2
    assert sum(importances.values()) == pytest.approx(1)
    assert importances["learning_rate"] > 0.9


def curves(count: int, epochs: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Errors after each epoch [count, epochs]: power laws that cross, with noise."""
    rng = np.random.default_rng(seed)
    final, slope = rng.lognormal(-4, 0.5, (count, 1)), rng.uniform(0.5, 1.5, (count, 1))
    epoch = np.arange(1, epochs + 1)
    noise = rng.normal(1, 0.03, (count, epochs))
    return (final + rng.lognormal(-3, 0.5, (count, 1)) * epoch**-slope) * noise


def test_pruning_saves_half_of_the_epochs_and_keeps_the_best_setting(tmp_path: Path) -> None:
    journal, errors = opened(tmp_path / "sweep"), curves(40, 12, seed=0)
    assert replayed(journal, errors.tolist()) <= errors.size / 2
    assert journal.study.best_value == errors[:, -1].min()


@pytest.mark.slow
def test_pruning_keeps_the_best_of_200_settings_nine_times_of_ten(tmp_path: Path) -> None:
    kept = 0
    for seed in range(10):
        journal, errors = opened(tmp_path / f"{seed}"), curves(200, 12, seed)
        assert replayed(journal, errors.tolist()) <= errors.size / 2
        kept += journal.study.best_value == errors[:, -1].min()
    assert kept >= 9
