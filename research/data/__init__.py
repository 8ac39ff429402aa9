"""The data: MNIST and look-alike data sets, batches, augmentation."""
