"""An error names a line of the experiment, or why a file can't be written and the remedy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import StorageError, in_few_lines
from research.files import storage_errors

import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, RunHere


def shapes(x: Any) -> Any:
    return tf.reshape(x, [3, 5])


def layers(x: Any) -> Any:
    return tf.keras.layers.Conv2D(1, 3)(x)


def indices(x: Any) -> Any:
    return tf.gather(x, [9 + tf.cast(x[0], tf.int32)])


def names(x: Any) -> Any:
    return x + missing  # type: ignore[name-defined]  # noqa: F821


def python(x: Any) -> Any:
    return tf.py_function(lambda y: 1 / 0, [x], tf.float32)


def several_lines(x: Any) -> Any:
    raise RuntimeError("the first line\n\n  and\nanother")


def silent(x: Any) -> Any:
    raise KeyError


CODE = Path(__file__).read_text().splitlines()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (shapes, r"(Value|InvalidArgument)Error: .*[Rr]eshape.* 4 .*15.*"),
        (layers, r"ValueError: .*ndim=4, found ndim=1.*(\n.*)?"),
        (indices, r"InvalidArgumentError: .*indices\[0\] = 9 is not in \[0, 4\).*"),
        (names, r"NameError: name 'missing' is not defined"),
        (python, r"\w*Error: .*division by zero.*(\n.*division by zero)?"),
        (several_lines, r"RuntimeError: the first line\nand\nanother"),
        (silent, r"KeyError:?"),
    ],
)
def test_an_error_is_the_line_of_the_users_code_and_its_message(
    step: Callable[[Any], Any], message: str, compiled: bool
) -> None:
    with pytest.raises(Exception) as caught:
        (tf.function(step) if compiled else step)(tf.zeros(4))
    number = step.__code__.co_firstlineno + 1
    where, line, said = in_few_lines(caught.value, step).split("\n", 2)
    assert re.fullmatch(rf"{__file__}, line {number}, in ({step.__name__}|<lambda>)", where)
    assert line == f"    {CODE[number - 1].strip()}"
    assert re.fullmatch(message, said), said
    for word in ("__inference", "node ", "site-packages", "Traceback"):
        assert word not in said


@pytest.mark.parametrize(
    ("before", "after", "named", "words"),
    [
        ("    with tf.", "    images = images[:, :9]\n    with tf.", "logits = ", ["incompatible"]),
        (
            "    gradients = ",
            "    loss = tf.reduce_mean(images)\n    gradients = ",
            "gradients = ",
            ["depend on"],
        ),
        (
            '"accuracy": ',
            '"new": images[0], "accuracy": ',
            "def step(",
            ["returned 'new'", "(28, 28,"],
        ),
    ],
)
def test_an_error_in_a_step_is_a_few_lines_on_the_screen_and_whole_in_the_log(
    before: str,
    after: str,
    named: str,
    words: list[str],
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
) -> None:
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    experiment = tmp_path / "spoiled.py"
    experiment.write_text(text.replace(before, after, 1))
    result = run_here(
        experiment, "--data", data_file, "--dense-width", "8", "--run-dir", tmp_path / "run"
    )
    assert result.status == 1
    where, line, message, last = result.stderr.splitlines()
    found = re.fullmatch(rf"error: {experiment}, line (\d+), in step", where)
    assert found, where
    assert line.strip() == experiment.read_text().splitlines()[int(found[1]) - 1].strip()
    assert line.strip().startswith(named)
    assert all(word in message for word in ["ValueError: ", *words]), message
    assert last == f"The whole traceback is in {tmp_path / 'run' / 'log.txt'}"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log
    assert "/site-packages/tensorflow/" in log


def in_tensorflow(path: Path) -> None:
    writer = tf.summary.create_file_writer(str(path))
    with writer.as_default():
        tf.summary.scalar("x", 1.0, 1)
    writer.flush()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "(No space left on device); make room"),
        (OSError(errno.EDQUOT, "x"), "(Disk quota exceeded); make room"),
        (OSError(errno.EFBIG, "x"), "(File too large); make room"),
        (OSError(errno.EMFILE, "x"), "(Too many open files); close files, or raise the limit"),
        (OSError(errno.ENOENT, "x"), "(No such file or directory); put its folder back"),
        (OSError(errno.EROFS, "x"), "(Read-only file system); make it writable"),
        (OSError(errno.EIO, "x"), "(Input/output error); correct that"),
        (OSError("write failed: 'No space left on device'"), "(No space left on device); make"),
        (
            tf.errors.UnknownError(None, None, "{{function_node __f}} torn [Op:FlushSummary]"),
            "(torn); correct that",
        ),
        (
            tf.errors.ResourceExhaustedError(
                None, None, "{{node w}} a.v2; No space left on device"
            ),
            "(No space left on device); make room",
        ),
    ],
)
def test_a_file_that_can_not_be_written_has_reason_and_remedy(
    error: Exception, message: str
) -> None:
    with (
        pytest.raises(StorageError) as caught,
        storage_errors(Path("a.v2"), tf.errors.OpError),
    ):
        raise error
    assert str(caught.value).startswith(f"a.v2: can't be written {message}")


def test_tensorflows_own_errors_say_no_more_than_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path, tf.errors.OpError):
        in_tensorflow(tmp_path / "file")
    assert str(caught.value) in {
        f"{tmp_path}: can't be written ({os.strerror(number)}); {remedy}"
        for number, remedy in (
            (errno.ENOTDIR, "put its folder back where it was"),
            (errno.EEXIST, "correct that"),
        )
    }
