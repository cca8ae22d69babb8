"""What a dictionary does inside its model and what its latents stand for."""
