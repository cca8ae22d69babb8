"""The map of a dictionary: latents whose decoder rows point in similar directions are near one another.

    atlas(sae, alive=records.table()["count"].to_numpy() > 0).save(records.folder)

UMAP of the rows of W_dec by cosine (15 neighbours, min_dist 0.05), clusters by HDBSCAN (at least 3 latents) of a UMAP in 10
dimensions (min_dist 0.1) and the order of a UMAP in one dimension, as in "Towards Monosemanticity" (2023).

Neighbours are exact up to `EXACT` latents, in blocks of 64 MB of cosines. Above, the rows are first projected to their 50
principal directions, neighbours are those of nearest-neighbour descent, and there are no clusters. Measured on one core, 576
wide: 4,608 latents 19 s, of which 6 s are umap compiling itself; 32,768 latents 147 s and 1.7 GB; 70,000 latents 86 s.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.errors import InputError, check
from saefast.files import load_tensors, save_tensors
from saefast.sae import SAE

ATLAS = "atlas.safetensors"
EXACT = 2**16  # latents up to which neighbours are exact and clusters are made
PRINCIPAL = 50  # directions that are kept of larger dictionaries
COSINES = 2**24  # at a time, 64 MB
FEWEST = 5  # latents below which there is no graph to lay out: they are put in a row


class Atlas(NamedTuple):
    """Where each latent is. Dead latents and zero rows of W_dec are nowhere."""

    coordinates: Tensor  # [F, 2] float32, NaN: nowhere
    clusters: Tensor  # [F] int32, numbered from 0 on; -1: in none
    order: Tensor  # [F] int32, the latents along a line; those that are nowhere come last

    def save(self, folder: str | Path) -> None:
        """As atlas.safetensors, usually in the folder of the records."""
        save_tensors(Path(folder) / ATLAS, self._asdict(), {"format": "saefast-atlas", "version": 1})

    @classmethod
    def load(cls, folder: str | Path) -> "Atlas | None":
        """The one in that folder; without a file, None.

        Raises:
            InputError: the file is damaged or holds something else.
        """
        path = Path(folder) / ATLAS
        if not path.exists():
            return None
        tensors, meta, _ = load_tensors(path)
        ok = meta.get("format") == "saefast-atlas" and meta.get("version") == 1
        check(ok, f"{path}: expected a saefast-atlas, version 1, got {meta}")
        return cls(**tensors)


def atlas(
    dictionary: SAE | Tensor,
    *,
    alive: Tensor | np.ndarray | None = None,
    seed: int = 0,
    n_neighbors: int = 15,
    min_dist: float = 0.05,
    min_cluster_size: int = 3,
) -> Atlas:
    """Make the map. The same bits for the same seed on the same machine with the same versions of umap and numba.

    Args:
        dictionary: an SAE, or W_dec [F, d]; rows of several dictionaries, one below the other, give a map of them all.
        alive: [F] bool, the latents that have a place; default: all. Zero rows never have one.
        seed: from 0 to 2^32 - 1.
        n_neighbors: of the graph that is laid out; fewer in a dictionary that has fewer.
        min_dist: how near to one another UMAP puts similar latents in the plane and on the line; from 0 to 1.
        min_cluster_size: latents that a cluster has at least, 2 or more.

    Raises:
        InputError: NaN or Inf in W_dec, an argument out of its range, or umap-learn is not installed.
    """
    W_dec = dictionary.params.W_dec if isinstance(dictionary, SAE) else dictionary
    ok = W_dec.ndim == 2 and W_dec.is_floating_point()
    check(ok, f"dictionary: expected an SAE or W_dec [F, d], got {W_dec.dtype} {list(W_dec.shape)}")
    rows = W_dec.detach().to("cpu", torch.float32)
    finite = bool(rows.isfinite().all())
    check(finite, "dictionary: expected finite weights, got NaN or Inf in W_dec")
    check(type(seed) is int and 0 <= seed < 2**32, f"seed: expected 0 to 2^32 - 1, got {seed!r}")
    check(n_neighbors >= 2, f"n_neighbors: expected 2 or more, got {n_neighbors!r}")
    check(0 <= min_dist <= 1, f"min_dist: expected 0 to 1, got {min_dist!r}")
    check(min_cluster_size >= 2, f"min_cluster_size: expected 2 or more, got {min_cluster_size!r}")
    n_latents = len(rows)
    has_place = rows.any(dim=1)
    if alive is not None:
        given = alive if isinstance(alive, Tensor) else torch.from_numpy(np.array(alive, bool))
        check(given.shape == (n_latents,), f"alive: expected [{n_latents}], got {list(given.shape)}")
        has_place &= given.to("cpu", torch.bool)
    places = has_place.nonzero()[:, 0]
    # each by its largest number first, so that the squares of tiny and of huge rows are in the range of float32
    chosen = rows[places] / rows[places].abs().amax(dim=1, keepdim=True)
    plane, clusters, line = _lay_out(
        torch.nn.functional.normalize(chosen), seed, n_neighbors, min_dist, min_cluster_size
    )
    coordinates = torch.full((n_latents, 2), float("nan"), dtype=torch.float32, device="cpu")
    coordinates[places] = torch.from_numpy(plane)
    of_all = torch.full((n_latents,), -1, dtype=torch.int32, device="cpu")
    of_all[places] = torch.from_numpy(clusters)
    along = places[torch.from_numpy(np.argsort(line, kind="stable"))]
    return Atlas(coordinates, of_all, torch.cat([along, (~has_place).nonzero()[:, 0]]).to(torch.int32))


def _lay_out(
    unit: Tensor, seed: int, n_neighbors: int, min_dist: float, min_cluster_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows [n, d] -> places in the plane [n, 2] float32, clusters [n] int32, places on a line [n]."""
    n, clusters = len(unit), np.full(len(unit), -1, np.int32)
    if n < FEWEST:
        line = np.arange(n, dtype=np.float32)
        return np.stack([line, np.zeros_like(line)], axis=1), clusters, line
    with (
        warnings.catch_warnings()
    ):  # of a missing TensorFlow, of few neighbours and of graphs in several parts
        warnings.simplefilter("ignore")
        UMAP, HDBSCAN = _packages()
        options: dict[str, Any] = {"metric": "cosine", "random_state": seed, "n_jobs": 1}
        if n <= EXACT:
            nearest = _nearest(unit, min(n_neighbors, n - 1))
            # with the neighbours given, umap neither searches nor compiles its search
            options |= {"precomputed_knn": (*nearest, None), "force_approximation_algorithm": True}
            options |= {"n_neighbors": nearest[0].shape[1], "init": "spectral" if n > 12 else "random"}
        else:
            unit = _principal(unit)
            options |= {"n_neighbors": n_neighbors, "init": "pca"}
        points = unit.numpy()

        def embedded(n_components: int, min_dist: float) -> np.ndarray:
            found = UMAP(n_components=n_components, min_dist=min_dist, **options).fit_transform(points)
            return np.asarray(found, np.float32)

        plane, line = embedded(2, min_dist), embedded(1, min_dist)[:, 0]
        if n <= EXACT:
            made = HDBSCAN(min_cluster_size=min(min_cluster_size, n), copy=True).fit_predict(
                embedded(10, 0.1)
            )
            clusters = made.astype(np.int32)
    return plane, clusters, line


def _packages() -> tuple[Any, Any]:
    try:
        from sklearn.cluster import HDBSCAN
        from umap import UMAP
    except ImportError:
        raise InputError("a map needs umap-learn: pip install 'saefast[interp]'") from None
    return UMAP, HDBSCAN


def _nearest(unit: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row itself and the n - 1 others of the largest cosine, as umap takes them: indices and 1 - cosine, [F, n]."""
    indices = torch.empty(len(unit), n, dtype=torch.int32, device="cpu")
    distances = torch.empty(len(unit), n, dtype=torch.float32, device="cpu")
    each = max(1, COSINES // len(unit))
    for first in range(0, len(unit), each):
        cosines = unit[first : first + each] @ unit.T
        own = torch.arange(len(cosines), dtype=torch.int64, device="cpu")
        cosines[own, own + first] = 2.0  # before any other that is the same
        values, found = cosines.topk(n)
        indices[first : first + each] = found.to(torch.int32)
        distances[first : first + each] = (1 - values).clamp_min(0)
    return indices.numpy(), distances.numpy()


def _principal(unit: Tensor) -> Tensor:
    """Rows in the directions of their largest second moments, without a mean taken off: cosines stay what they are."""
    none = torch.zeros((), dtype=torch.float64, device="cpu")
    moments = sum((part.double().T @ part.double() for part in unit.split(2**14)), none)
    _, directions = torch.linalg.eigh(moments)
    return unit @ directions[:, -PRINCIPAL:].to(unit)
