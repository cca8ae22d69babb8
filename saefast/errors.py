"""The one exception for a value the user gave: the message names the argument, what was expected, what came."""


class InputError(ValueError):
    """Bad input. The command line prints it as one line and exits with status 2."""


def check(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


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
