"""saefast: fast training of sparse autoencoders on language-model activations."""

from saefast import formats
from saefast.backend import load_backend
from saefast.config import SAEConfig, TrainConfig
from saefast.errors import InputError
from saefast.evaluate import evaluate
from saefast.recipes import recipe
from saefast.sae import SAE
from saefast.sources import open_source
from saefast.trainer import Trainer

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
