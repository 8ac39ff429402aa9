"""What each verb of ``python -m research`` takes; ``research/tools/`` has what it does.

A verb's docstring is its ``--help``; the first paragraph and the first example are in the list of
verbs. Nothing here imports TensorFlow, so that ``--help`` appears at once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Annotated, Literal, get_args

from research.config import require
from research.errors import InputError
from research.help import INTERNAL

import tyro

# Beside the package: the project is installed in place.
EXPERIMENTS = Path(__file__).parents[1] / "experiments"

# The loops that ``bench`` measures.
Ours = Literal["ours-float32", "ours-bfloat16", "products-float32", "products-bfloat16"]
Others = Literal["fit-float32", "fit-bfloat16", "torch-float32"]
Loop = Literal[Ours, Others]

# What has become of a run, see research.recording.summary.Summary.
RunStatus = Literal["running", "finished", "stopped", "killed", "failed", "damaged"]


def _installed() -> tuple[Loop, ...]:
    torch = importlib.util.find_spec("torch") is not None
    return tuple(loop for loop in get_args(Loop) if torch or not loop.startswith("torch"))


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained model on a test set: loss, accuracy, classes, calibration, mistakes.

        python -m research evaluate runs/mnist_cnn/RUN

    A run is evaluated on the test set of its own data, unless --data names others.
    """

    run_or_h5: Annotated[Path, tyro.conf.Positional]
    """A run directory, or an mnist.h5."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files. Default: the run's data, or MNIST."""
    json: bool = False
    """Print JSON instead of tables."""
    examples: int | None = None
    """Evaluate only this many examples, the first ones."""
    corrupted: bool = False
    """Show instead the accuracy under fifteen corruptions: noise, blur, rotation, fog..."""
    severity: int | None = None
    """With --corrupted: 1 to 5. Default: all of them."""
    seed: int = 0
    """With --corrupted: decides its random numbers."""
    picture: Path | None = None
    """With --corrupted: a PNG file to write, with a digit and the accuracies under each."""

    def __post_init__(self) -> None:
        valid = self.examples is None or self.examples >= 1
        require("examples", self.examples, valid, "give at least 1")
        valid = self.severity is None or (self.corrupted and self.severity in range(1, 6))
        require("severity", self.severity, valid, "give 1 to 5, and --corrupted")
        valid = self.seed == 0 or (self.corrupted and self.seed > 0)
        require("seed", self.seed, valid, "give 0 or more, and --corrupted")
        valid = self.picture is None or (self.corrupted and self.picture.suffix == ".png")
        require("picture", self.picture, valid, "name a .png file, and give --corrupted")


@dataclasses.dataclass(frozen=True)
class Predict:
    """Say which digit each image file shows, and whether that is sure.

        python -m research predict mnist.h5 photo.jpg

    Any size, mode and lighting: of an image that is not of 28x28 pixels, the background is removed
    and the digit is scaled and centred as MNIST's were. It is shown as the network saw it. Dark on
    light is inverted. An image that can't be read is named on standard error, and the others are
    predicted; the exit status is then 1, and 2 where no image can be read.
    """

    run_or_h5: Annotated[Path, tyro.conf.Positional]
    """A run directory, or an mnist.h5."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    json: bool = False
    """Print JSON, with the probabilities of all ten digits, instead of a table."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image: name one or more image files after the run or mnist.h5")


@dataclasses.dataclass(frozen=True)
class Verify:
    """Prove that an experiment's step is sound: compiled, reproducible, learning, resumable.

        python -m research verify experiments/mixup.py

    Run it after changing a step. It trains the experiment for a few steps on a few examples. Then
    it runs the experiment in processes that it kills at random moments and resumes. Options behind
    -- go to the experiment:

        python -m research verify \\
            experiments/mixup.py -- --alpha 0.3
    """

    experiment: Annotated[Path, tyro.conf.Positional] = EXPERIMENTS / "mnist_cnn.py"
    """The file of the experiment. Default: experiments/mnist_cnn.py."""
    kills: int = 3
    """Kill the experiment at so many random moments with SIGKILL. A tenth of the kills, and at
    least one of two, hit a fork."""
    stops: int = 2
    """Stop it at so many random moments by a signal that lets it save, such as SIGTERM."""
    full: bool = False
    """Kill the experiment at its own size, on 5,000 examples, instead of a small one."""
    only_kills: bool = False
    """Leave out the checks within one process."""
    minutes: float = 10
    """End the checks within one process, or an uninterrupted run, that take longer: they hang."""
    seed: int = 0
    """Decides the random moments."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files. Default: MNIST."""
    json: bool = False
    """Print JSON instead of a table."""
    options: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The experiment's own options, behind --."""

    def __post_init__(self) -> None:
        for name in ("kills", "stops"):
            value = getattr(self, name)
            require(name, value, value >= 0, "give 0 for none, or more")
        valid = 0 < self.minutes <= 10_000
        require("minutes", self.minutes, valid, "give a number above 0, at most 10000")


@dataclasses.dataclass(frozen=True)
class Compare:
    """Judge whether a change was worth it: train arms in pairs until there is a verdict.

        python -m research compare \\
            experiments/mnist_cnn.py \\
            experiments/harder_half.py -- --epochs 1

    The first arm is the baseline. Each pair trains all arms with the same seed, and so with the
    same held-out examples and order of batches. The rule may be looked at after every pair. The
    test set is not read. Options behind -- hold for all arms.

    An arm is an experiment, with options of its own in quotes, or as it was in a commit:

        python -m research compare \\
            experiments/mnist_cnn.py \\
            "experiments/mnist_cnn.py --dropout 0 0.25"

        python -m research compare \\
            experiments/mnist_cnn.py \\
            HEAD~1:experiments/mnist_cnn.py
    """

    arms: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Two or more: FILE, "FILE OPTIONS" or "REVISION:FILE OPTIONS"."""
    metric: str | None = None
    """The figure that decides, evaluated on held-out examples: highest or lowest, and its name.
    Default: lowest error."""
    margin: str | None = None
    """A difference too small to matter, such as 0.05% of the examples, or 0.01 of another figure.
    With it, arms can be found equivalent."""
    most_pairs: int = 40
    """Stop undecided after so many pairs. With more, the same command goes on."""
    alpha: float = 0.05
    """The probability of a false verdict, over all challengers and looks."""
    first_seed: int = 0
    """The seed of the first pair; pairs count upwards from it."""
    workers: int | None = None
    """Trainings at a time. Default: one on each core, or as many as --threads leaves room for."""
    threads: int = 1
    """Threads of each training; other numbers give other bits."""
    scheduler: str | None = None
    """A Dask scheduler whose workers train: its address, such as tcp://10.0.0.1:8786, or file."""
    directory: Path | None = None
    """The directory of the comparison. Default: runs/compare/TIME-NAMES."""
    cost: bool = False
    """Only try the arms for a few steps and say what the comparison would cost."""
    again: Path | None = None
    """Judge a verdict.json afresh, without training. With another --metric that is exploration."""
    json: bool = False
    """Print verdict.json instead of a table."""
    options: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The options for all arms, behind --."""

    def __post_init__(self) -> None:
        require("alpha", self.alpha, 1e-6 <= self.alpha < 0.5, "give a probability, such as 0.05")
        require("threads", self.threads, 1 <= self.threads <= 1024, "give 1 or more")
        require("first_seed", self.first_seed, 0 <= self.first_seed < 2**30, "give 0 or more")
        most = self.most_pairs
        require("most_pairs", most, 1 <= most <= 1000, "give 1 to 1000")
        if self.workers is not None:
            require("workers", self.workers, 1 <= self.workers <= 1024, "give 1 or more")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Find the best settings of some options, and judge the winner on examples no trial saw.

        python -m research sweep \\
            experiments/mnist_cnn.py \\
            --over learning_rate=0.1..10:log \\
            decay=linear,cosine -- --epochs 2

    Each trial is a setting of the options, trained with several seeds and judged by the mean of a
    figure on held-out examples. Optuna decides what to try. Options behind -- hold for all
    trainings. Ctrl-C stops; the same command goes on. In the end the best setting is compared with
    the experiment as it is, see compare.

    An option is tried at all numbers of a range, evenly on a logarithmic scale with :log, at so
    many of them with :5, or at the values that are listed. Values of several words stand in quotes:

        --over learning_rate=0.1..10:log:5 \\
            "dropout=0 0.25,0.25 0.5"
    """

    experiment: Annotated[Path, tyro.conf.Positional]
    """The experiment's file."""
    over: tuple[str, ...] = ()
    """The options to try: NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=A,B,C."""
    trials: int | None = None
    """Number of settings; with more, the same command goes on. Default: 20, or the whole grid."""
    seeds: int = 3
    """Trainings of each setting, with seeds from 0. Their mean judges, so that luck is not
    selected."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are drawn: near good ones, at random, or all of a grid."""
    sampler_seed: int = 0
    """Decides what is drawn; the settings, if they are random."""
    prune: bool = False
    """Give up settings whose first validations are bad. Which ones then depends on timing."""
    metric: str | None = None
    """The figure that judges, evaluated on held-out examples: highest or lowest, and its name.
    Default: lowest error."""
    reserve: int = 10_000
    """Number of training examples that no trial sees. They judge the best setting in the end."""
    most_pairs: int = 20
    """Stop the comparison with the experiment as it is undecided after so many pairs."""
    verdict: bool = True
    """Compare in the end; --no-verdict prints the command instead."""
    workers: int | None = None
    """Trainings at a time. Default: one on each core, or as many as --threads leaves room for."""
    threads: int = 1
    """Threads of each training; other numbers give other bits."""
    scheduler: str | None = None
    """A Dask scheduler whose workers train: its address, such as tcp://10.0.0.1:8786, or file."""
    directory: Path | None = None
    """The directory of the sweep. Default: runs/sweep/TIME-EXPERIMENT."""
    options: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The options of all trainings, behind --."""

    def __post_init__(self) -> None:
        if self.trials is not None:
            grid = "a grid has all its settings; leave it out"
            require("trials", self.trials, self.sampler != "grid", grid)
            require("trials", self.trials, 1 <= self.trials <= 10_000, "give 1 to 10000")
        require("seeds", self.seeds, 1 <= self.seeds <= 1000, "give 1 or more")
        valid = 0 <= self.sampler_seed < 2**31
        require("sampler_seed", self.sampler_seed, valid, "give 0 to 2147483647")
        require("reserve", self.reserve, self.reserve >= 1, "give 1 or more")
        require("most_pairs", self.most_pairs, 1 <= self.most_pairs <= 1000, "give 1 to 1000")
        require("threads", self.threads, 1 <= self.threads <= 1024, "give 1 or more")
        if self.workers is not None:
            require("workers", self.workers, 1 <= self.workers <= 1024, "give 1 or more")


@dataclasses.dataclass(frozen=True)
class Launch:
    """Train an experiment on several workers of this machine, as on several machines.

        python -m research launch --workers 2 \\
            experiments/mnist_cnn.py --epochs 1

    What follows the experiment's file are its own options; --strategy multi_worker is added. The
    workers divide the cores among them: that is for trying what will run on many machines, and is
    no faster than --strategy default. The screen shows what the chief prints, and why another
    worker has failed. Ctrl-C stops all of them after the same step, with one checkpoint; the chief
    says how to go on. runs/README.md has what to type on several machines.
    """

    experiment: Annotated[Path, tyro.conf.Positional]
    """The experiment's file."""
    workers: int = 2
    """Number of workers."""
    threads: int | None = None
    """Threads of each worker; other numbers give other bits. Default: an equal share of the
    cores."""
    options: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The experiment's own options, behind its file."""

    def __post_init__(self) -> None:
        require("workers", self.workers, 1 <= self.workers <= 64, "give 1 to 64")
        valid = self.threads is None or 1 <= self.threads <= 1024
        require("threads", self.threads, valid, "give 1 or more")


@dataclasses.dataclass(frozen=True)
class Runs:
    """List runs: how they were trained, what they have come to, and how to go on with them.

        python -m research runs mnist_cnn --sort test

    A comparison or sweep is one line; name its directory for its trainings. Looking disturbs no run
    at work.
    """

    where: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of runs, or names of experiments. Default: all runs below runs/."""
    experiment: str | None = None
    """Only runs of this experiment."""
    status: tuple[RunStatus, ...] = ()
    """Only runs with one of these statuses."""
    sort: Literal["when", "test", "validation", "duration", "experiment", "status"] = "when"
    """The order: newest, best or longest first."""
    last: int | None = None
    """Only the N newest."""
    json: bool = False
    """Print JSON, with all options and figures, instead of a table."""

    def __post_init__(self) -> None:
        require("last", self.last, self.last is None or self.last >= 1, "give 1 or more")


@dataclasses.dataclass(frozen=True)
class Diff:
    """Say what two runs have in common, in what they differ, and where their metrics part.

        python -m research diff \\
            runs/mnist_cnn/ONE runs/mnist_cnn/OTHER

    Compared are options, code, data, versions, hardware, figures, weights, and the metrics of every
    step.
    """

    one: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    other: Annotated[Path, tyro.conf.Positional]
    """Another one."""
    code: bool = False
    """Show the difference of the experiments' code and of the library, line by line."""
    json: bool = False
    """Print JSON instead of words."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Repeat the step in which a value became NaN or infinite, and show where it began.

        python -m research replay \\
            runs/mnist_cnn/RUN/replay-step-00000100

    This runs the experiment's code in the bundle: replay only bundles that you trust.
    """

    bundle: Annotated[Path, tyro.conf.Positional]
    """A directory replay-step-... in a run directory."""
    all: bool = False
    """Show every value of the step, not only those around the first that is not finite."""
    json: bool = False
    """Print JSON, with every value of the step, instead of a table."""


@dataclasses.dataclass(frozen=True)
class Rerun:
    """Do a run again, in the code of then, and say whether every bit is the same.

        python -m research rerun runs/mnist_cnn/RUN

    Code, options and seed are those that the run's directory keeps. A run that was stopped is done
    again up to its last checkpoint. The exit status is 0 if every bit is the same, and 1 if one
    differs. This runs the code in the directory: rerun only runs that you trust.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory; it is not changed."""
    data: Path | None = None
    """The run's data, where they have been moved: a Keras-style .npz or a folder of IDX files."""
    run_dir: Path | None = None
    """The directory to create for the new run, or that of a rerun that was stopped, which goes on.
    Default: runs/EXPERIMENT/TIME-SEED."""
    json: bool = False
    """Print JSON, and not what the training shows."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure steps per second, or minutes, beside Keras fit. Let nothing else run.

        python -m research bench experiments/mnist_cnn.py

    Each loop runs in its own process, and the loops take turns, so that slow moments of the machine
    affect all of them. Keras and PyTorch (if it is installed) run with their defaults. The floor is
    the time of a step's arithmetic as large matrix products.
    """

    experiment: Annotated[Path, tyro.conf.Positional] = EXPERIMENTS / "mnist_cnn.py"
    """The file of the experiment whose step is measured. Default: experiments/mnist_cnn.py."""
    blocks: int = 5
    """Number of turns of each loop; not with --trainings."""
    steps: int = 60
    """Steps in a turn (with --trainings, in a turn of Keras fit); not with --recording."""
    loops: tuple[Loop, ...] = dataclasses.field(default_factory=_installed)
    """Which loops to measure; not with --recording or --trainings."""
    json: bool = False
    """Print JSON instead of tables."""
    recording: bool = False
    """Measure instead the cost of recording: whole epochs of the experiment with and without."""
    trainings: int | None = None
    """Measure instead this many whole trainings, with seeds from 0, and the time of Keras fit."""
    examples: int | None = None
    """With --recording or --trainings: use only this many examples, the first ones."""
    serve: Annotated[Ours | Literal["trainings"] | None, INTERNAL] = None
    """Be one of the measured processes: take a turn for each line of standard input."""

    def __post_init__(self) -> None:
        require("blocks", self.blocks, self.blocks >= 2, "give at least 2")
        whole = self.recording or self.trainings is not None or self.serve == "trainings"
        valid = self.examples is None or (whole and self.examples >= 1)
        need = "give at least 1, and --recording or --trainings"
        require("examples", self.examples, valid, need)
        valid = self.trainings is None or (self.trainings >= 2 and not self.recording)
        require("trainings", self.trainings, valid, "give at least 2, without --recording")
        require("steps", self.steps, self.steps >= 1, "give at least 1")
        once = 0 < len(set(self.loops)) == len(self.loops)
        require("loops", " ".join(self.loops), once, "give at least one, and each once")
        for loop in self.loops:
            missing = "it is not installed; pip install torch"
            require("loops", loop, loop in _installed(), missing)


@dataclasses.dataclass(frozen=True)
class Board:
    """Start TensorBoard on runs, and print its address.

        python -m research board

    It shows runs while they train, too. Ctrl-C ends it.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run directories, or directories of runs. Default: all below runs/."""
    host: str = "localhost"
    """The address to listen on; 0.0.0.0 lets other machines connect."""
    port: int | None = None
    """The port to listen on. Default: 6006, or the next free port; 0 takes any free port."""

    def __post_init__(self) -> None:
        require("port", self.port, 0 <= (self.port or 0) < 65536, "give 0 to 65535")


Verb = (
    Evaluate
    | Predict
    | Verify
    | Compare
    | Sweep
    | Launch
    | Runs
    | Diff
    | Rerun
    | Replay
    | Bench
    | Board
)

VERBS: dict[str, type] = {verb.__name__.lower(): verb for verb in get_args(Verb)}
