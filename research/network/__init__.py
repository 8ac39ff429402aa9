"""The network, and the layers that it is made of beyond Keras's own."""
