"""The dictionaries of the study: the ladder of sizes by the recipe of 2023 and by BatchTopK, and those that they are compared with.

Activations are made on the fly, each token once. What differs from the paper's recipe, because a CPU has minutes and not 8 billion
vectors: rows are scaled to E||x||^2 = 1, so that one penalty does for every subject; the penalty is 4e-4 in these units (the mean over d_in, the
sum over latents), reached after 5 % of the steps; lr 4e-4 and betas (0.9, 0.99); batches of 2048; dead latents are resampled at 2.5,
5, 7.5 and 10 % of the steps as there, dead being those without activity over 1.25 % of the steps.
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
from saefast.train.trainer import Trainer

BATCH = 2048
PENALTY, LR, BETAS = 4e-4, 4e-4, (0.9, 0.99)
RESAMPLED_AT, DEAD_AFTER = (0.025, 0.05, 0.075, 0.1), 0.0125  # shares of the steps, as in the paper
FATAL_LR = 2e-3
"""At which latents die, to see what resampling is good for."""


@dataclass(frozen=True)
class Wanted:
    """One dictionary."""

    name: str
    subject: str  # "A", "B" or "shuffled"
    d_sae: int
    tokens: int
    kind: Literal["l1", "batch_topk"] = "l1"
    k: int = 0  # of batch_topk
    resample: bool = True
    lr: float = LR

    def configs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of SAEConfig (without d_in) and of TrainConfig."""
        steps = -(-self.tokens // BATCH)
        sae, train = recipe("monosemanticity-2023" if self.kind == "l1" else "batchtopk")
        train |= {
            "total_tokens": self.tokens,
            "batch_size": BATCH,
            "buffer_tokens": 64 * BATCH,
            "log_every": 20,
        }
        if self.kind == "batch_topk":
            return sae | {"d_sae": self.d_sae, "k": self.k}, train | {
                "lr": 1e-3,
                "dead_feature_threshold": 50 * BATCH,
            }
        sample = BATCH * min(32, max(4, steps // 32))  # of inputs whose losses resampling looks at
        at = sorted({max(1, round(share * steps)) for share in RESAMPLED_AT}) if self.resample else []
        train |= {
            "normalize_input": "unit",
            "sparsity_coefficient": PENALTY,
            "sparsity_warmup_fraction": 0.05,
        }
        train |= {
            "lr": self.lr,
            "betas": BETAS,
            "resample_steps": tuple(at),
            "resample_tokens": sample if at else train["resample_tokens"],
        }
        train |= {"dead_feature_threshold": max(1, round(DEAD_AFTER * steps)) * BATCH}
        return sae | {"d_sae": self.d_sae}, train


def train(wanted: Wanted, source: TextSource, folder: Path, device: str = "cpu") -> bool:
    """Train it in a run folder, or go on. Returns whether it is complete: Ctrl-C stops it between two steps."""
    shape, options = wanted.configs()
    sae = SAE(SAEConfig(d_in=source.d_in, **shape), 0, device)
    trainer = Trainer(sae, TrainConfig(**options, seed=0, checkpoint_every=400))
    return trainer.fit(Background(source, 16 * BATCH), folder, resume=True)
