"""Steering: what a model does with its latents set, pinned, added or scaled, and the error of the SAE kept.

with steered(model, sae, "model.layers.12", [Edit(17, 30.0)]):
    model(tokens); model.generate(...)         # any passes
    sample(model, tokenizer, ["Once upon"])    # texts, the same for the same seed

pinned_sampling(model, tokenizer, sae, hook, [pin(records, 17)], judge)   # beside the model as it is
listens(records, sae, model, hook, latents)                              # the loss, beside random directions
"""

from saefast.interp.steering.controls import SpliceCheck, random_directions, splice_check
from saefast.interp.steering.edits import Edit, described, largest_activation, parse_edit, pin
from saefast.interp.steering.intervals import Interval, Share, mean_interval, wilson
from saefast.interp.steering.listens import Compared, Heard, Listens, listens
from saefast.interp.steering.pinned import Arm, PinnedSampling, pinned_sampling
from saefast.interp.steering.sampling import COUNTING, Sample, sample
from saefast.interp.steering.steered import steered

__all__ = [
    "COUNTING",
    "Arm",
    "Compared",
    "Edit",
    "Heard",
    "Interval",
    "Listens",
    "PinnedSampling",
    "Sample",
    "Share",
    "SpliceCheck",
    "described",
    "largest_activation",
    "listens",
    "mean_interval",
    "parse_edit",
    "pin",
    "pinned_sampling",
    "random_directions",
    "sample",
    "splice_check",
    "steered",
    "wilson",
]
