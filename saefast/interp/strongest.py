"""The latents that carry most of the activation energy, as a list and as text."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from saefast.errors import check
from saefast.interp.records import Example, LatentRecord, Records
from saefast.interp.vocabulary import Vocabulary, visible


def strongest(
    records: Records, n_features: int = 10, n_examples: int = 5, max_density: float = 0.005
) -> list[LatentRecord]:
    """The latents of the largest energy (sum of squared activations), the largest first; of equal ones the earlier.

    Args:
        n_features: at most so many; latents that are never active are left out.
        n_examples: of the group "top", the other groups stay as they are.
        max_density: latents that are active on more than this share of the tokens are left out, because they say
            little about any one token.

    Raises:
        InputError: a number that is negative.
    """
    for name, number in (("n_features", n_features), ("n_examples", n_examples)):
        check(number >= 0, f"{name}: expected 0 or more, got {number!r}")
    columns = records.table(["energy", "density"])
    energy, density = (columns[name].to_numpy() for name in ("energy", "density"))
    energy = np.where(density > max_density, 0.0, energy)
    chosen = np.argsort(-energy, kind="stable")[:n_features]
    found = [records.latent(latent) for latent in chosen[energy[chosen] > 0].tolist()]
    return [
        replace(latent, examples=latent.examples | {"top": latent.examples["top"][:n_examples]})
        for latent in found
    ]


def total_energy(records: Records) -> float:
    """Of all latents: a latent's energy is a share of it."""
    return float(records.table(["energy"])["energy"].to_numpy().sum())


def features_text(latents: Iterable[LatentRecord], vocabulary: Vocabulary, total: float) -> str:
    """Latents with their strongest examples, each example on a line, the token in [brackets].

    Args:
        total: `total_energy` of the records.
    """
    lines = []
    for latent in latents:
        share, density = f"{latent.energy / total:.1%} of the energy", f"{latent.density:.2%} of tokens"
        lines.append(f"\nlatent {latent.latent}: {share}, active on {density}")
        lines += [f"  {one.act:8.1f}  {example_text(one, vocabulary)}" for one in latent.examples["top"]]
    return "\n".join(lines)


def example_text(example: Example, vocabulary: Vocabulary, before: int = 20, after: int = 5) -> str:
    """The tokens around its token, which is in [brackets], in one line; runs of white space are one space."""
    first = max(0, example.at - before)
    tokens, at = example.tokens[first : example.at + after + 1], example.at - first
    parts = tokens[:at], [tokens[at]], tokens[at + 1 :]
    left, token, right = (b"".join(vocabulary.raw[i] for i in part) for part in parts)
    return visible(b" ".join((left + b"[" + token + b"]" + right).split()))
