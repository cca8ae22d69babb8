"""How often each latent is active, and which latents are dead, of ultra-low density, or live.

    sets = density_sets(records, sae)
    int(sets.live.sum()), sets.numbers()

"Towards Monosemanticity" (2023) found a cluster of latents of ultra-low density, near 1e-7, that stand for nothing. The
density alone does not tell them apart from rare but meaningful ones; with the bias of the encoder and the dot product of the
encoder and the decoder of a latent it does.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.errors import InputError
from saefast.interp.effects.checks import check_same
from saefast.interp.records import Records
from saefast.interp.together import sums
from saefast.sae import SAE

STATISTICS = ("log10_density", "b_enc", "cosine")
FEWEST = 50  # active latents below which no clusters are looked for
COMPONENTS = 4  # of the mixture, at most
GAP = 1.0  # decades by which the ultra-low cluster lies lower, at least
LARGEST = 1e-4  # density in the middle of each component of the ultra-low cluster: above is what ordinary latents have
OVERLAP = 0.05  # the largest share of a cluster that may be expected to belong to the other one
APART = 2.0  # Ashman's D of the two clusters along the line that tells them apart best, at least


class DensitySets(NamedTuple):
    """dead, ultra_low and live are disjoint and together all latents."""

    n_rows: int  # tokens with a row, of which a density is a share
    counts: np.ndarray  # [F] int64, tokens on which each latent is active
    statistics: np.ndarray  # [F, 3] float64, columns as STATISTICS; the density of a dead latent is -inf
    dead: np.ndarray  # [F] bool, active on no token of the records
    ultra_low: np.ndarray  # [F] bool
    live: np.ndarray  # [F] bool, all others
    clusters: int  # 1, or 2 if there is an ultra-low one
    why: str  # in words: by what the clusters were told apart, or why there is only one
    overlap: (
        float  # share of a cluster that may belong to the other one, by the mixture; NaN with one cluster
    )
    distance: float  # Ashman's D of the two clusters, along the line that tells them apart best; NaN with one cluster

    @property
    def density(self) -> np.ndarray:
        """[F] float64."""
        return self.counts / max(self.n_rows, 1)

    def histogram(self, bins_per_decade: int = 5) -> dict[str, list[Any]]:
        """Of log10 of the density: "edges" [n + 1], and the numbers of "live" and of "ultra_low" latents, [n] each."""
        lowest = -math.log10(max(self.n_rows, 10))
        n = math.ceil(-lowest * bins_per_decade)
        edges = np.linspace(-n / bins_per_decade, 0, n + 1)
        found: dict[str, list[Any]] = {"edges": edges.round(6).tolist()}
        for name, chosen in (("live", self.live), ("ultra_low", self.ultra_low)):
            place = np.searchsorted(edges, self.statistics[chosen, 0], side="right") - 1
            found[name] = np.bincount(place.clip(0, n - 1), minlength=n).tolist()
        return found

    def numbers(self) -> dict[str, Any]:
        """What a report shows, as JSON."""
        density = self.density
        live = density[self.live]
        return {
            "latents": len(density),
            "tokens": self.n_rows,
            "dead": int(self.dead.sum()),
            "ultra_low": int(self.ultra_low.sum()),
            "live": int(self.live.sum()),
            "above_1_percent": int((density > 0.01).sum()),
            "median_density_live": float(np.median(live)) if len(live) else None,
            "median_density_ultra_low": float(np.median(density[self.ultra_low]))
            if self.ultra_low.any()
            else None,
            "clusters": self.clusters,
            "why": self.why,
            "overlap": None if math.isnan(self.overlap) else self.overlap,
            "distance": None if math.isnan(self.distance) else self.distance,
            "histogram": self.histogram(),
        }


def density_sets(records: Records, sae: SAE, seed: int = 0) -> DensitySets:
    """Tell the three sets apart.

    Mixtures of two to four normal distributions of the statistics (all that vary over the latents) are fitted to the latents that
    are active. Of the cuts between components of low and of higher density, the one counts that leaves the least overlap, if
    its two clusters are apart (by the constants of this module) and the mixture is better than one distribution by BIC. Else
    there is one cluster.

    Args:
        records: more tokens show rarer latents; on n tokens none of a density below 1 / n is seen: such are dead here.
        sae: that of the records.
        seed: of the fits.

    Raises:
        InputError: records of another SAE, or scikit-learn is not installed.
    """
    check_same(records, sae)
    counts = sums(records)[0].astype(np.int64)
    with np.errstate(divide="ignore"):
        log_density = np.log10(counts / max(records.n_rows, 1))
    b_enc, cosine = sae.b_enc.detach().double().cpu().numpy(), _cosines(sae)
    statistics = np.stack([log_density, b_enc, cosine], axis=1)
    dead = counts == 0
    found = tell_apart(statistics[~dead], seed)
    ultra_low = np.zeros(len(dead), bool)
    ultra_low[~dead] = found.is_low
    n = 2 if found.is_low.any() else 1
    return DensitySets(records.n_rows, counts, statistics, dead, ultra_low, ~dead & ~ultra_low, n, *found[1:])


def _cosines(sae: SAE) -> np.ndarray:
    """Of the row of W_enc and the row of W_dec of each latent, [F] float64; 0 where a row is zero or they differ in width."""
    W_enc, W_dec = (weight.detach().double().cpu() for weight in (sae.W_enc, sae.W_dec))
    if W_enc.shape != W_dec.shape:
        return np.zeros(len(W_dec))
    found: Tensor = torch.nn.functional.cosine_similarity(W_enc, W_dec, dim=1)
    return found.numpy()


class Clusters(NamedTuple):
    """As the fields of `DensitySets`, of latents that are active."""

    is_low: np.ndarray  # [n] bool; none with one cluster
    why: str
    overlap: float = math.nan
    distance: float = math.nan


def tell_apart(statistics: np.ndarray, seed: int = 0) -> Clusters:
    """[n, 3] of latents that are active, columns as `STATISTICS` -> which are of the ultra-low cluster; see `density_sets`."""
    one = np.zeros(len(statistics), bool)
    if len(statistics) < FEWEST:
        return Clusters(one, f"one cluster: {len(statistics)} active latents are too few to tell")
    spread = statistics.std(axis=0)
    varies = spread > 1e-6 * np.maximum(np.abs(statistics).max(axis=0), 1e-12)
    names = ", ".join(name for name, does in zip(STATISTICS, varies, strict=True) if does)
    if not varies[0]:
        return Clusters(one, "one cluster: all active latents have the same density")
    points = (statistics[:, varies] - statistics[:, varies].mean(axis=0)) / spread[varies]
    fits = [_fit(points, n, seed) for n in range(1, COMPONENTS + 1)]
    alone = fits[0].bic(points)
    cuts: list[tuple[float, float, np.ndarray]] = []
    for mixture in fits[1:]:
        belongs, log_density = mixture.predict_proba(points), statistics[:, 0]
        middles = belongs.T @ log_density / belongs.sum(axis=0).clip(1e-12)
        order = np.argsort(middles)
        for n_low in range(1, len(order)):
            share = belongs[:, order[:n_low]].sum(axis=1)  # of each latent, that it is of the lower cluster
            is_low = share > 0.5
            if min(is_low.sum(), (~is_low).sum()) < points.shape[1] + 2:
                continue
            overlap = max((1 - share[is_low]).mean(), share[~is_low].mean())
            gap = log_density[~is_low].mean() - log_density[is_low].mean()
            distance = _distance(points[is_low], points[~is_low])
            good = (
                gap >= GAP
                and middles[order[n_low - 1]] <= math.log10(LARGEST)
                and mixture.bic(points) < alone
            )
            cuts += [(overlap, distance, is_low)] if good and overlap <= OVERLAP and distance >= APART else []
    if not cuts:
        return Clusters(one, f"one cluster: no cut by {names} leaves a lower one that is apart")
    overlap, distance, is_low = min(cuts, key=lambda cut: cut[0])
    return Clusters(is_low, f"two clusters by {names}", float(overlap), float(distance))


def _fit(points: np.ndarray, n: int, seed: int) -> Any:
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise InputError("density sets need scikit-learn: pip install 'saefast[interp]'") from None
    return GaussianMixture(n, reg_covar=1e-4, n_init=2, random_state=seed).fit(points)


def _distance(low: np.ndarray, high: np.ndarray) -> float:
    """Ashman's D, |difference of the means| over the root of the mean variance, along Fisher's line between two clusters; 2 and
    more: two modes."""
    within = np.atleast_2d((np.cov(low.T) + np.cov(high.T)) / 2) + 1e-9 * np.eye(low.shape[1])
    line = np.linalg.solve(within, high.mean(axis=0) - low.mean(axis=0))
    a, b = low @ line, high @ line
    return float(abs(a.mean() - b.mean()) / math.sqrt(max((a.var() + b.var()) / 2, 1e-30)))
