"""The reference network, its layers that Keras does not have, and initial weights."""
