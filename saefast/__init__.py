"""saefast: fast training of sparse autoencoders on language-model activations."""

from saefast import formats
from saefast.activations.open import open_source
from saefast.backend import load_backend
from saefast.config.recipes import recipe
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError
from saefast.interp.evaluate import evaluate
from saefast.sae import SAE
from saefast.train.trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "SAE",
    "InputError",
    "SAEConfig",
    "TrainConfig",
    "Trainer",
    "evaluate",
    "formats",
    "load_backend",
    "open_source",
    "recipe",
]
