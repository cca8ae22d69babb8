"""The dictionaries of the study: the ladder of sizes by the recipe of 2023 and by BatchTopK, and those that they are compared with.

Activations are made on the fly, each token once. What differs from the paper's recipe, because a CPU has minutes and not 8 billion
vectors: rows are scaled to E||x||^2 = 1, so that one penalty does for every subject; the penalty is 2e-4 in these units (the mean over d_in, the
sum over latents), reached after 5 % of the steps; betas (0.9, 0.99). Batch, lr, the largest gradient and when dead latents are resampled are those
of the scale.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saefast.activations.live_source import Background
from saefast.activations.text_source import TextSource
from saefast.config.recipes import recipe
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.sae import SAE
from saefast.study.scales import Schedule
from saefast.train.trainer import Trainer

BUFFER, AHEAD = 2**17, 2**15  # rows that are shuffled; rows that are made while the last ones are trained on
PENALTY, BETAS = 2e-4, (0.9, 0.99)
LR_TODAY = 1e-3


@dataclass(frozen=True)
class Wanted:
    """One dictionary."""

    name: str
    subject: str  # "A", "B" or "shuffled"
    d_sae: int
    tokens: int
    schedule: Schedule
    kind: Literal["l1", "batch_topk"] = "l1"
    k: int = 0  # of batch_topk
    resample: bool = True

    def configs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of SAEConfig (without d_in) and of TrainConfig."""
        schedule = self.schedule
        steps = -(-self.tokens // schedule.batch)
        sae, train = recipe("monosemanticity-2023" if self.kind == "l1" else "batchtopk")
        train |= {
            "total_tokens": self.tokens,
            "batch_size": schedule.batch,
            "buffer_tokens": max(BUFFER, 16 * schedule.batch),
            "dead_feature_threshold": max(1, round(schedule.dead_after * steps)) * schedule.batch,
            "log_every": 20,
        }
        if self.kind == "batch_topk":
            return sae | {"d_sae": self.d_sae, "k": self.k}, train | {"lr": LR_TODAY}
        at = (
            sorted({max(1, round(share * steps)) for share in schedule.resampled_at}) if self.resample else []
        )
        if at:  # of inputs whose losses resampling looks at
            train["resample_tokens"] = min(2**16, schedule.batch * max(4, steps // 32))
        train |= {
            "normalize_input": "unit",
            "sparsity_coefficient": PENALTY,
            "sparsity_warmup_fraction": 0.05,
            "lr": schedule.lr,
            "grad_clip": schedule.grad_clip,
            "betas": BETAS,
            "resample_steps": tuple(at),
        }
        return sae | {"d_sae": self.d_sae}, train


def train(wanted: Wanted, source: TextSource, folder: Path, device: str = "cpu") -> bool:
    """Train it in a run folder, or go on. Returns whether it is complete: Ctrl-C stops it between two steps."""
    shape, options = wanted.configs()
    sae = SAE(SAEConfig(d_in=source.d_in, **shape), 0, device)
    trainer = Trainer(sae, TrainConfig(**options, seed=0, checkpoint_every=1000))
    return trainer.fit(Background(source, AHEAD), folder, resume=True)
