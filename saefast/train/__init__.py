"""Whole runs: the trainer, its schedules and optimizers, checkpoints, logs."""
