"""The one exception for a value the user gave: the message names the argument, what was expected, what came."""


class InputError(ValueError):
    """Bad input. The command line prints it as one line and exits with status 2."""


def check(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)
