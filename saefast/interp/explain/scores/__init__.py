"""How well an explanation does: each score with an interval, and beside it what answers without any explanation get."""
