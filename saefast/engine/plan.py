"""What shapes a step: the two frozen configs, and the few fields that are computed from them and from the run so far."""

from dataclasses import dataclass, field

import torch

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig

# Shares of the latents active between which a code may be sparse or dense, see `stays_dense`.
GPU_DENSITY = 0.004, 0.008
CPU_DENSITY = 0.18, 0.25


@dataclass(frozen=True)
class Plan:
    """Steps of one run with equal plans run the same kernels in the same order.

    Two plans are compared by their computed fields alone: the configs of a run do not change in what shapes a step, and
    a weight that does change is among the numbers of the step (see `saefast.engine.numbers`).
    """

    sae: SAEConfig = field(compare=False)
    train: TrainConfig = field(compare=False)
    k: int  # active latents per token now, see `TrainConfig.k_start`; 0 where it is not bounded
    compute_dtype: torch.dtype  # of the products; sums are in fp32 at least
    dense: bool = False  # a code [B, F] in place of a list of entries
    dead_capacity: int = 0  # rows for dead latents; 0 leaves AuxK out
    code_capacity: int | None = None  # entries reserved for a list without bound; None counts, and waits
    frozen: frozenset[str] = frozenset()  # parameters that no step changes (requires_grad is False), by name

    @property
    def nested(self) -> bool:
        """Whether one code makes several reconstructions, see `saefast.engine.nested`."""
        return bool(self.sae.group_sizes or self.train.multi_topk)

    @property
    def k_aux(self) -> int:
        """Dead latents that AuxK uses per token."""
        return self.train.k_aux or max(1, self.sae.d_in // 2)

    def rows_at_once(self, n_tokens: int) -> int:
        """Of what is as wide as the dictionary."""
        return self.train.micro_batch_size or max(n_tokens, 1)


def stays_dense(dense: bool, density: float, between: tuple[float, float]) -> bool:
    """Whether the next code without bound is kept as a matrix, given the share of latents that was measured active: the
    same step, the cheaper way.

    Forward, a token gathers density * F rows of D 16-bit numbers, 2 * density * F * D bytes, or takes part in a product
    of 2 * F * D FLOPs: even at density = bandwidth / FLOPS. On an H200 (790 TFLOP/s) that is 0.54% from memory (4.3 TB/s)
    and 0.70% from L2 (5.5 TB/s), backward 0.8 to 1%. On a CPU it was measured (benchmarks/LOG.md). Two thresholds, so
    that a density between them does not switch at every step.
    """
    below, above = between
    return density >= (below if dense else above)
