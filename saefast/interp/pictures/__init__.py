"""Results of `saefast.interp` as PNG, by matplotlib (the extra `viz`): each function takes results and a path.

draw_families(families, path, vocabulary)     # what latents split into
draw_ladder_map(map, splitting, path)         # all dictionaries of a ladder
draw_automata(automata, path, vocabulary)     # cycles of next steps
draw_densities({"A/1": sets}, path)
draw_similarities({"features": universality}, path)
draw_scores({"features": values}, path, "correlation")
"""

from saefast.interp.pictures.automata import draw_automata
from saefast.interp.pictures.families import draw_families
from saefast.interp.pictures.histograms import draw_densities, draw_similarities
from saefast.interp.pictures.ladder_map import draw_ladder_map
from saefast.interp.pictures.scores import draw_scores

__all__ = [
    "draw_automata",
    "draw_densities",
    "draw_families",
    "draw_ladder_map",
    "draw_scores",
    "draw_similarities",
]
