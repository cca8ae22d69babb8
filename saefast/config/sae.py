"""What an SAE is. The config is frozen and checked when it is made; the command line is generated from it."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from saefast.errors import check, check_choices, positive

Activation = Literal["topk", "batch_topk", "matryoshka", "group_max", "relu", "jumprelu", "gated"]
WITH_K = get_args(Activation)[:4]


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is: everything needed to rebuild the module around its weights."""

    d_in: int
    """Width of the activations; of all layers together for a crosscoder."""
    d_sae: int
    """Number of latents, the size of the dictionary."""
    activation: Activation = "topk"
    """Which pre-activations become active, see `saefast.engine.architectures`. topk: the k largest of each token.
    batch_topk: the B * k largest of a batch in training, those above one threshold afterwards. matryoshka: the same, for
    nested dictionaries. group_max: the largest of each of k groups of latents. relu: the positive ones. jumprelu: those
    above the threshold of their latent. gated: those whose gate is open."""
    k: int | None = None
    """Active latents per token, for topk, batch_topk, matryoshka and group_max. Default: 32."""
    d_out: int | None = None
    """Width of the target of a transcoder; None: the SAE reconstructs its input."""
    pre_bias: bool = True
    """Whether b_dec is subtracted from the input. It must be False for a transcoder."""
    skip: bool = False
    """Transcoder: add W_skip x to the output (arXiv 2501.18823)."""
    layers: int = 1
    """Crosscoder: the input is this many layers of width d_in / layers, side by side; the norm of a decoder row is the
    sum of the norms of its parts."""
    group_sizes: tuple[int, ...] = ()
    """Matryoshka: sizes of the nested dictionaries; the last is d_sae. Default: d_sae / 16, / 8, / 4, / 2, / 1."""
    scale_by_norm: bool = False
    """TopK, BatchTopK, Matryoshka, JumpReLU: select by pre_acts * ||W_dec row||, for decoder rows that have any norm."""
    input_norm: Literal["none", "layer_norm", "constant_norm", "scale"] = "none"
    """How a row is normalised before it is encoded, which is undone in its reconstruction; see `saefast.sae.inference`.
    The trainer takes "none" and "scale"; it gives a fresh crosscoder its "scale". The others are for SAEs of other
    projects."""
    scales: tuple[float, ...] | None = None
    """For "scale": what the input is multiplied by, then what the output is divided by; for a crosscoder a number for
    each layer of the input, then one for each of the output."""
    init_threshold: float | None = None
    """JumpReLU: the thresholds of a fresh SAE, in the units of the scaled input (see normalize_input). Default: 0.001 of
    the norm that its rows are scaled to (Gemma Scope's 0.001 is for rows of norm 1)."""

    def __post_init__(self) -> None:
        positive(self, "d_in", "d_sae", "layers")
        check_choices(self)
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
        above_0 = self.init_threshold is None or 0 < self.init_threshold < math.inf
        check(above_0, f"init_threshold: expected > 0, got {self.init_threshold!r}")
        self._check_scales()
        self._check_groups()

    def _check_scales(self) -> None:
        kind, scales = self.input_norm, self.scales
        per_row = kind in ("layer_norm", "constant_norm")  # the output of a transcoder has another norm
        ok = not per_row or self.d_out is None
        check(ok, f"input_norm: expected 'none' for a transcoder, got {kind!r}")
        ok = (kind == "scale") == (scales is not None)
        check(ok, f"scales: expected with 'scale' only, got {kind!r}")
        n = 2 * self.layers
        ok = scales is None or (len(scales) == n and all(0 < scale < math.inf for scale in scales))
        check(ok, f"scales: expected {n} positive numbers, got {scales!r}")

    def _check_groups(self) -> None:
        kind, given = self.activation, self.group_sizes
        if kind != "matryoshka":
            check(not given, f"group_sizes: expected () with activation {kind!r}, got {given}")
            return
        sizes = tuple(given) or tuple(self.d_sae // n for n in (16, 8, 4, 2, 1) if self.d_sae >= n)
        object.__setattr__(self, "group_sizes", sizes)
        rising = sizes[-1] == self.d_sae and sizes[0] > 0 and all(a < b for a, b in pairwise(sizes))
        check(rising, f"group_sizes: expected rising sizes that end with d_sae = {self.d_sae}, got {sizes}")

    @property
    def top_k(self) -> int:
        """k, or 0 if the number of active latents is not bounded."""
        return self.k or 0

    @property
    def k_of_token(self) -> int | None:
        """How many latents are active in every token; None if that differs between tokens."""
        return self.k if self.activation in ("topk", "group_max") else None

    @property
    def width_out(self) -> int:
        """Width of the decoder."""
        return self.d_out or self.d_in

    @property
    def row_width(self) -> int:
        """Width of a row to train on: for a transcoder the target stands behind the input."""
        return self.d_in + (self.d_out or 0)
