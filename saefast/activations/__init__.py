"""Where activations come from, how they are kept on disk, and how they are shuffled."""
