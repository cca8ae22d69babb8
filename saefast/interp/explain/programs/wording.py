"""Rules in English."""

from collections.abc import Sequence

from saefast.interp.explain.programs.signs import STATES, Sign
from saefast.interp.explain.programs.split import REACH
from saefast.interp.explain.programs.words import listed, quoted
from saefast.interp.vocabulary import Vocabulary

NAMED = 8  # tokens of a set


def phrase(signs: Sequence[Sign], vocabulary: Vocabulary) -> str:
    """What a rule is about: 'digits after " the" at the start of a line'."""
    nouns = [sign.name for sign in signs if sign.kind == "is"]
    nouns = [_tokens(sign, vocabulary) for sign in signs if sign.kind == "token"] + nouns
    runs = [sign for sign in signs if sign.kind == "run"]
    rest = [sign for sign in signs if sign.kind not in ("is", "token", "run")]
    noun = " that are also ".join(nouns) or (runs[0].name if runs else "tokens")
    of = [f"in a run of at least {sign.n}" + (f" {sign.name}" if sign.name != noun else "") for sign in runs]
    return " ".join([noun, *of, *(_modifier(sign, vocabulary) for sign in rest)])


def _modifier(sign: Sign, vocabulary: Vocabulary) -> str:
    if sign.kind == "state":
        return STATES[sign.name]
    if sign.kind in ("after", "before"):
        return f"{sign.kind} {sign.name}"
    tokens = _named(sign, vocabulary)
    return {
        "previous": f"after {tokens}",
        "second": f"two tokens after {tokens}",
        "near": f"within {REACH} tokens of {tokens}",
    }[sign.kind]


def _tokens(sign: Sign, vocabulary: Vocabulary) -> str:
    return f"the token{'s' * (len(sign.tokens) > 1)} {_named(sign, vocabulary, 'and')}"


def _named(sign: Sign, vocabulary: Vocabulary, last: str = "or") -> str:
    return listed([quoted([vocabulary.raw[token]]) for token in sign.tokens], last, NAMED)
