"""What an SAE is. Frozen, validated where it is made; the command line (`cli.py`) is generated from it."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from saefast.errors import check, one_of, positive

ACTIVATIONS = ("topk", "batch_topk", "matryoshka", "group_max", "relu", "jumprelu", "gated")
WITH_K = ACTIVATIONS[:4]


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is: everything needed to rebuild the module around its weights."""

    d_in: int
    """Width of the activations; of all layers together for a crosscoder."""
    d_sae: int
    """Number of latents, the size of the dictionary."""
    activation: Literal["topk", "batch_topk", "matryoshka", "group_max", "relu", "jumprelu", "gated"] = "topk"
    """Which pre-activations become active, see `saefast.engine.architectures`: the k largest of each token, B * k of a batch
    (with one threshold afterwards), the same of nested dictionaries, the largest of each of k groups of latents, the
    positive ones, those above a threshold of each latent, those that a gate lets through."""
    k: int | None = None
    """Active latents per token, for the first four. Default: 32."""
    d_out: int | None = None
    """Width of the target of a transcoder; None: the SAE reconstructs its input."""
    pre_bias: bool = True
    """Whether b_dec is subtracted from the input. False for a transcoder."""
    skip: bool = False
    """Transcoder: adds W_skip x to the output (arXiv 2501.18823)."""
    layers: int = 1
    """Crosscoder: the input is that many layers of d_in / layers, the norm of a decoder row the sum of theirs."""
    group_sizes: tuple[int, ...] = ()
    """Matryoshka: sizes of the nested dictionaries, the last d_sae. Default: d_sae / 16, / 8, / 4, / 2, / 1."""
    scale_by_norm: bool = False
    """TopK, BatchTopK, Matryoshka, JumpReLU: select by pre_acts * ||W_dec row||, for decoder rows of any norm."""
    input_norm: Literal["none", "layer_norm", "constant_norm", "scale"] = "none"
    """What is done to a row before it is encoded, and undone to its reconstruction, see
    `saefast.sae.inference`. For SAEs of other projects: the trainer takes "none" only."""
    scales: tuple[float, float] | None = None
    """For "scale": what the input is multiplied by, and what the output is divided by."""
    init_threshold: float = 0.001
    """JumpReLU: the thresholds of a fresh SAE, in the units in which it is trained (see normalize_input)."""

    def __post_init__(self) -> None:
        positive(self, "d_in", "d_sae", "layers")
        one_of(self, "activation", ACTIVATIONS)
        with_k, kind = self.activation in WITH_K, self.activation
        if with_k and self.k is None:
            object.__setattr__(self, "k", 32)
        if with_k:
            positive(self, "k")
            check(self.top_k <= self.d_sae, f"k: expected at most d_sae = {self.d_sae}, got {self.k}")
        check(with_k or self.k is None, f"k: expected None with activation {kind!r}, got {self.k}")
        if kind == "group_max":
            fits = self.d_sae % self.top_k == 0
            check(fits, f"k: expected a divisor of d_sae = {self.d_sae} with 'group_max', got {self.k}")
        if self.d_out is not None:
            positive(self, "d_out")
            check(not self.pre_bias, "pre_bias: expected False for a transcoder (d_out is set), got True")
        check(self.d_out is not None or not self.skip, "skip: expected False without d_out, got True")
        divides = self.d_in % self.layers == 0 and self.width_out % self.layers == 0
        check(divides, f"layers: expected a divisor of d_in = {self.d_in} (and d_out), got {self.layers}")
        scalable = not self.scale_by_norm or kind in ("topk", "batch_topk", "matryoshka", "jumprelu")
        check(scalable, f"scale_by_norm: expected False with activation {kind!r}, got True")
        check(
            0 < self.init_threshold < math.inf, f"init_threshold: expected > 0, got {self.init_threshold!r}"
        )
        self._check_input_norm()
        self._check_groups()

    def _check_input_norm(self) -> None:
        one_of(self, "input_norm", ("none", "layer_norm", "constant_norm", "scale"))
        of_input = self.input_norm in (
            "layer_norm",
            "constant_norm",
        )  # a transcoder's output has another norm
        kind = self.input_norm
        check(
            not of_input or self.d_out is None, f"input_norm: expected 'none' for a transcoder, got {kind!r}"
        )
        check(
            (kind == "scale") == (self.scales is not None),
            f"scales: expected with 'scale' only, got {kind!r}",
        )
        ok = self.scales is None or (
            len(self.scales) == 2 and all(0 < scale < math.inf for scale in self.scales)
        )
        check(ok, f"scales: expected two positive numbers, got {self.scales!r}")

    def _check_groups(self) -> None:
        if self.activation != "matryoshka":
            empty = not self.group_sizes
            check(
                empty, f"group_sizes: expected () with activation {self.activation!r}, got {self.group_sizes}"
            )
            return
        sizes = tuple(self.group_sizes) or tuple(self.d_sae // n for n in (16, 8, 4, 2, 1) if self.d_sae >= n)
        object.__setattr__(self, "group_sizes", sizes)
        rising = sizes[-1] == self.d_sae and sizes[0] > 0 and all(a < b for a, b in pairwise(sizes))
        check(rising, f"group_sizes: expected rising sizes that end with d_sae = {self.d_sae}, got {sizes}")

    @property
    def top_k(self) -> int:
        """k where there is one; 0 where the number of active latents is not bounded."""
        return self.k or 0

    @property
    def k_of_token(self) -> int | None:
        """Active latents of every token; None where tokens differ."""
        return self.k if self.activation in ("topk", "group_max") else None

    @property
    def width_out(self) -> int:
        """Width of the decoder."""
        return self.d_out or self.d_in

    @property
    def row_width(self) -> int:
        """Width of a row to train on: a transcoder's has the target behind the input."""
        return self.d_in + (self.d_out or 0)
