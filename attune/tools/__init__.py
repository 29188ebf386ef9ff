"""Commands of `python -m attune`."""
