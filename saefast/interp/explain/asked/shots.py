"""Example units, made up, by which a judge is shown what it is asked for."""

import re
from typing import NamedTuple

import numpy as np

from saefast.interp.explain.asked.tokens import Words

STRONGEST = 10
_PIECE = re.compile(r"(?P<space> ?)(?:\{(?P<inner>[^{}]+):(?P<value>\d+)\}|(?P<outer>\w+|[^\w\s]))")


class Shot(NamedTuple):
    """A unit: what it is active on, and texts in which {token:activation} is active, up to STRONGEST, and the rest is not."""

    sentence: str
    texts: tuple[str, ...]


SHOTS = (
    Shot(
        "Words for boats, harbours and water.",
        (
            "The {ferry:10} left the {harbour:7} at dawn and crossed the cold {lake:4} in less than an hour.",
            "She paid for two tickets at the window and took the last bus home.",
            "An old {trawler:9} lay in the {port:7}, its nets full of holes.",
            "He said that the {river:5} had never been so low in all his life.",
            "The committee will vote on the new budget in the first week of March.",
        ),
    ),
    Shot(
        "Years, as numbers of four digits.",
        (
            "Founded in {1896:10}, the club had 40 members and two teams by {1912:9}.",
            "The third room holds 12 chairs and a table for 8 people.",
            "From {1971:9} to {1974:9} she taught chemistry at a school in Leeds.",
            "Nobody could tell me how many of them were left on the island.",
            "Heat the oven to 220 degrees and bake the bread for 35 minutes.",
        ),
    ),
    Shot(
        "The word after a negation such as not, never or no.",
        (
            "I have never {seen:9} him smile, and he does not {talk:10} about the war.",
            "There was no {answer:7} from the house, so we went on.",
            "The train to Milan leaves from platform six every morning.",
            "They painted the door green and planted roses along the wall.",
            "You must not {open:10} this box before Sunday.",
        ),
    ),
    Shot(
        "Closing brackets in the code of programs.",
        (
            "def area(r{):10}: return pi * square(r{):8}",
            "The recipe asks for butter, sugar, flour and three fresh eggs.",
            "if len(rows{):9} == 0: print(names[0{]:7}{):6}",
            "Our neighbours sold their farm and moved to the coast.",
            "while True: break",
        ),
    ),
)


def pieces(text: str) -> tuple[Words, np.ndarray]:
    """A text of a shot as its tokens, and how active the unit is on each, [n] float64 from 0 to 1."""
    texts, values = [], []
    for found in _PIECE.finditer(text):
        texts.append(found["space"] + (found["inner"] or found["outer"]))
        values.append(int(found["value"] or 0) / STRONGEST)
    return Words(texts, np.arange(len(texts))), np.array(values)
