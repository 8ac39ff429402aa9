"""A convolutional network learns MNIST through a training loop that is yours to change.

Import this package before TensorFlow: it then keeps the lines that TensorFlow writes while it
is imported off the screen, for the run's log.
"""

from __future__ import annotations

from research.stderr import import_tensorflow_quietly

import_tensorflow_quietly()
