"""saefast: fast training of sparse autoencoders on language-model activations.

What the package exports is imported when it is first asked for, so that `saefast --help` does not wait for torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saefast import formats as formats
    from saefast.activations.open import open_source as open_source
    from saefast.backend import load_backend as load_backend
    from saefast.config.recipes import recipe as recipe
    from saefast.config.train import SAEConfig as SAEConfig
    from saefast.config.train import TrainConfig as TrainConfig
    from saefast.errors import InputError as InputError
    from saefast.interp.evaluate import evaluate as evaluate
    from saefast.sae import SAE as SAE
    from saefast.train.trainer import Trainer as Trainer

__version__ = "0.1.0"
PLACES = {
    "SAE": "saefast.sae",
    "InputError": "saefast.errors",
    "SAEConfig": "saefast.config.train",
    "TrainConfig": "saefast.config.train",
    "Trainer": "saefast.train.trainer",
    "evaluate": "saefast.interp.evaluate",
    "load_backend": "saefast.backend",
    "open_source": "saefast.activations.open",
    "recipe": "saefast.config.recipes",
}
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


def __getattr__(name: str) -> Any:
    """PEP 562: called for a name that the package does not have yet; a module of it is imported likewise."""
    place = f"{__name__}.{name}"
    if name not in PLACES and (name.startswith("_") or find_spec(place) is None):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = import_module(place) if name not in PLACES else getattr(import_module(PLACES[name]), name)
    globals()[name] = found
    return found
