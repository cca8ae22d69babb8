"""What an SAE is, how it is trained, and the settings of papers and projects by name."""

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig

__all__ = ["SAEConfig", "TrainConfig"]
