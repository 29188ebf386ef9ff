"""What pretraining, SFT and DPO share: arguments, batches, checkpoints, resuming, curves."""
