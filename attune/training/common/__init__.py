"""The trainer's arguments, checkpoints, resume, batches over ranks."""
