"""A convolutional network learns MNIST through a training loop that is yours to change.

Import this package before TensorFlow: it then sets the flags that TensorFlow reads once, and keeps
TensorFlow's start-up messages off the screen, for the run's log.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

from research.processor import use_onednn
from research.stderr import (
    QuietTensorFlow,
    occupy_standard_descriptors,
    show_error,
)

# The time.monotonic() at which the program began, without the start of Python itself.
BEGUN = time.monotonic()


def _choose_temporary_directory() -> None:
    """TensorFlow's import needs a temporary directory: takes one in memory if all others fail."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        if not os.access("/dev/shm", os.W_OK):
            show_error(
                "error: no temporary directory can be written to; set TMPDIR to one that can"
            )
            sys.exit(2)
        tempfile.tempdir = "/dev/shm"


occupy_standard_descriptors()  # before any file is opened
_choose_temporary_directory()
use_onednn()
if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, QuietTensorFlow())
