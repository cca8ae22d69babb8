"""Which judges may speak, and a sheet for people.

bank.py   units of which the true explanation is known, each with false ones that are nearly right
gate.py   a judge must rank the true ones first in 80 % of the bank before its numbers are shown
sheet.py  50 explanations for people to say which hold; their failure rate stands beside the scores
"""

from saefast.interp.explain.trust.bank import PuzzleUnit, Stated, load_bank
from saefast.interp.explain.trust.gate import RuleJudge, Trust, Way, trust

__all__ = [
    "PuzzleUnit",
    "RuleJudge",
    "Stated",
    "Trust",
    "Way",
    "load_bank",
    "trust",
]
