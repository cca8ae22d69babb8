"""How texts become contexts, see `saefast.activations.contexts`: the choices, which the command line shows without torch."""

from typing import Literal

Bos = Literal["auto", "always", "never"]
Separator = Literal["auto", "eos", "bos", "none"]
