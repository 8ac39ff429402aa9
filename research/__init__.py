"""A convolutional network learns MNIST through a training loop that is yours to change.

Import this package before TensorFlow: it then chooses how TensorFlow computes, and keeps the lines
that TensorFlow writes while it is imported off the screen, for the run's log.
"""

from __future__ import annotations

from research.processor import use_onednn
from research.stderr import import_tensorflow_quietly

use_onednn()
import_tensorflow_quietly()
