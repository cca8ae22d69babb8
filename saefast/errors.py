"""The one exception for a value that the user gave. Its message names the argument, what was expected, and what came."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin


class InputError(ValueError):
    """Bad input. The command line prints it as one line and exits with status 2: line ends and other signs that cannot be
    printed, say in names that a damaged file has, stand in it as in a Python string."""

    def __init__(self, message: object) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message)))


def check(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def line(error: Exception) -> str:
    """The message of an exception in one line, not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def shown(value: Any) -> str:
    """A value as messages show it: in one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def positive(config: object, *names: str) -> None:
    """Check that these fields are positive integers."""
    for name in names:
        value = getattr(config, name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        check(is_int and value > 0, f"{name}: expected a positive integer, got {value!r}")


def one_of(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Check that this field is one of `choices`."""
    value = getattr(config, name)
    check(value in choices, f"{name}: expected one of {list(choices)}, got {value!r}")


def check_choices(config: Any) -> None:
    """Check that every field of a dataclass whose type is a Literal has one of its values."""
    for field in fields(config):
        if get_origin(field.type) is Literal:
            one_of(config, field.name, get_args(field.type))
