"""The data: MNIST and its look-alikes, and batches of them."""
