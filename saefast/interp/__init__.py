"""What a dictionary does inside its model and what its latents stand for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saefast.interp.notebook import show as show

__all__ = ["show"]


def __getattr__(name: str) -> Any:
    """PEP 562: what shows latents in a notebook is imported when it is first asked for."""
    if name != "show":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("saefast.interp.notebook").show
