"""What comes out of training: evaluation, mnist.h5, prediction."""
