"""A convolutional network learns MNIST through a training loop that is yours to change.

Import this package before TensorFlow: it then chooses how TensorFlow computes, and keeps the lines
that TensorFlow writes while it is imported off the screen, for the run's log.
"""

from __future__ import annotations

import time

from research.processor import use_onednn
from research.stderr import import_tensorflow_quietly, occupy_standard_descriptors

# When the program began, as time.monotonic() counts, but for the start of Python itself.
BEGUN = time.monotonic()

occupy_standard_descriptors()  # before any file is opened
use_onednn()
import_tensorflow_quietly()
