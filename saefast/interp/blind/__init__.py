"""Blind evaluation by people, as in "Towards Monosemanticity": are features easier to read than neurons?

    dealt = deal({"features": Records(...), "neurons": Records(...)}, "blind", vocabulary)
    # blind/cards.html goes to the raters, who send files of ratings; blind/key.json stays
    unseal("blind", ["ratings-AB-80-of-80.json"])

A card shows a unit (a latent or a neuron, by the same code) without its kind: cards.py. The rubric has 14 points: rubric.py. The
page is one file, of assets/ and of what the pages of `saefast look` have: page.py. `tool_trial` tries all of it on planted units,
`leak_of` measures what a card betrays.
"""

from saefast.config.blind import BlindConfig
from saefast.interp.blind.deal import Dealt, Drawn, deal
from saefast.interp.blind.leak import Leak, leak, leak_of
from saefast.interp.blind.page import Page, read_page
from saefast.interp.blind.picture import draw_results
from saefast.interp.blind.planted import Planted, planted
from saefast.interp.blind.ratings import Ratings, read_ratings, write_ratings
from saefast.interp.blind.scripted import scripted_ratings
from saefast.interp.blind.statistics import Comparison, Summary
from saefast.interp.blind.trial import ToolTrial, tool_trial
from saefast.interp.blind.unseal import Status, status, unseal

__all__ = [
    "BlindConfig",
    "Comparison",
    "Dealt",
    "Drawn",
    "Leak",
    "Page",
    "Planted",
    "Ratings",
    "Status",
    "Summary",
    "ToolTrial",
    "deal",
    "draw_results",
    "leak",
    "leak_of",
    "planted",
    "read_page",
    "read_ratings",
    "scripted_ratings",
    "status",
    "tool_trial",
    "unseal",
    "write_ratings",
]
