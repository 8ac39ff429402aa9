"""The results of training: evaluation, mnist.h5, prediction."""
