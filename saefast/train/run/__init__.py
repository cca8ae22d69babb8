"""What surrounds the steps of a run: its folder, checkpoints, logs, curves, signals, and the SAE it ends with."""
