"""Code shared by pretraining, SFT and DPO: arguments, batches, checkpoints, resuming, curves."""
