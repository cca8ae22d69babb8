"""Explanations that others made, into the folder of records of the latents they are about."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from saefast.errors import check
from saefast.interp.exchange.delphi_explanations import read_delphi_explanations
from saefast.interp.exchange.neuronpedia import read_neuronpedia_explanations
from saefast.interp.exchange.openai_read import read_openai_explanations, read_openai_simulations
from saefast.interp.exchange.openai_simulations import Places
from saefast.interp.explanations import add_explanations
from saefast.interp.records.read import Records
from saefast.interp.simulations import Simulations

Layout = Literal["openai", "neuronpedia", "delphi"]
READERS: dict[str, Callable[[Path], Iterable[dict[str, Any]]]] = {
    "neuronpedia": read_neuronpedia_explanations,
    "delphi": read_delphi_explanations,
}


class Imported(NamedTuple):
    """How many explanations."""

    explanations: int
    simulated: int  # of these, with simulations that are kept
    elsewhere: int  # with simulations of text that is not in the records: these are left out


def import_explanations(
    folder: str | Path,
    source: str | Path,
    layout: Layout,
    *,
    layer: int | None = None,
    strings: Sequence[str] | None = None,
) -> Imported:
    """Add the explanations of `source` to explanations.jsonl, and their simulations to simulations.jsonl in a folder of records.

    They replace those that are there of the same latent, method and model, whose simulations go, too. Explanations are added when
    all of `source` was read.

    Args:
        folder: of records.
        source: openai: a folder of explanations/LAYER/NUMBER.jsonl; neuronpedia: MODEL/SOURCE of an export; delphi: results/NAME.
        layer: openai: which one; default: the only one that is there.
        strings: openai: the text of each token id (`Vocabulary.strings`). Without, simulations are left out.

    Raises:
        InputError: an unknown layout; a file that is not of this layout; an explanation of a latent that is not in the records.
    """
    source, layouts = Path(source), get_args(Layout)
    check(layout in layouts, f"layout: expected one of {', '.join(layouts)}, got {layout!r}")
    check(layer is None or layout == "openai", f"layer: expected only with openai, got {layer} with {layout}")
    records = Records(folder)
    found = list(read_openai_explanations(source, layer) if layout == "openai" else READERS[layout](source))
    for one in found:
        ok = 0 <= one["latent"] < records.d_sae
        of = f"{source}: expected explanations of latents 0 to {records.d_sae - 1}, those of {records.folder}"
        check(ok, f"{of}, got one of latent {one['latent']}")
    placed: set[tuple[int, str | None, str | None]] = set()
    n_elsewhere = 0
    with closing(Simulations(folder)) as kept:
        if layout == "openai" and strings is not None:
            places = Places(records, strings)
            for row in read_openai_simulations(source, layer):
                key = row["latent"], row["method"], row["model"]
                simulations = [_placed(one, row["latent"], places) for one in row["simulations"]]
                if None in simulations:
                    n_elsewhere += 1
                else:
                    kept.append(*key, [one for one in simulations if one is not None])
                    placed.add(key)
        for one in found:
            key = one["latent"], one["method"], one["model"]
            if key not in placed and kept.get(*key):
                kept.append(*key, [])  # those that are there are of another explanation
    add_explanations(folder, found)
    return Imported(len(found), len(placed), n_elsewhere)


def _placed(one: dict[str, Any], latent: int, places: Places) -> dict[str, Any] | None:
    """A simulation of `read_openai_simulations` as simulations.jsonl has it; None if its window is not in the text."""
    slot = places.find(latent, one["tokens"], one["true_activations"])
    if slot is None:
        return None
    kept = {name: value for name, value in one.items() if name not in ("tokens", "true_activations")}
    return {"slot": slot, "length": len(one["tokens"])} | kept
