"""Direct preference optimisation, from the loss to the packed forward pass."""
