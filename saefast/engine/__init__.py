"""One optimizer step: forward, backward, update; the same for every backend and architecture."""
