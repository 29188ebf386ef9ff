"""Files, errors, processes, checkpoints: decides no number, so it is a dependency of no stage."""
