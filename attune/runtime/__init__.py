"""Files, errors, processes, checkpoints. Nothing here affects a result, so no stage depends on it in DVC."""
