"""Faster CPU kernels behind one call, `optimize.optimize_for_cpu`; a GPU run never enters them."""
