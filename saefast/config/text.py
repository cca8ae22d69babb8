"""How texts become contexts, see `saefast.activations.contexts`, and activations: the choices, which the command line shows without torch."""

from typing import Literal

Bos = Literal["auto", "always", "never"]
Separator = Literal["auto", "eos", "bos", "none"]
ModelDtype = Literal["fp32", "bf16"]  # of the products, see `saefast.activations.model_dtype`
