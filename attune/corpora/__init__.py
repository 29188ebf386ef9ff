"""From the files of a corpus to dialogues: readers, splits, masking, and leakage between splits."""
