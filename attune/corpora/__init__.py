"""From the files of a corpus to dialogues: readers, splits, masking, leakage."""
