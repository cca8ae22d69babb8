"""`saefast recipes`: the recipes, with their settings as flags."""

import textwrap
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from saefast.config.recipes import RECIPES, recipe


@dataclass(frozen=True)
class Recipes:
    """List the recipes of papers and of other projects: the source, the settings as flags, and what differs from the source."""

    name: Positional[str | None] = None
    """Only this one."""

    def run(self) -> None:
        for name in RECIPES if self.name is None else (self.name,):
            of_sae, of_train = recipe(name)
            flags = " ".join(as_flag(*field) for field in (of_sae | of_train).items())
            print(name)
            for title, text in (
                ("source", RECIPES[name].source),
                ("flags", flags),
                ("differs", RECIPES[name].note),
            ):
                lines = textwrap.wrap(text, 88, break_on_hyphens=False, break_long_words=False)
                print(*(f"  {title if i == 0 else '':8}{line}" for i, line in enumerate(lines)), sep="\n")


def as_flag(name: str, value: Any) -> str:
    """A field of a config as it is written on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool) and name != "normalize_input":  # which has other values besides
        return f"--{flag}" if value else f"--no-{flag}"
    return " ".join([f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))])
