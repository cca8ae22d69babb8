"""The acceptance table: what was to be shown, what was found, and whether that is enough. The bars are written here and nowhere else."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from saefast.study.control import ASKED

Found = dict[str, Any]
NAMES = {"features": "A/1 (2023)", "today": "A/1 (BatchTopK)"}


class Row(NamedTuple):
    """One condition. passed is None where it could not be asked: found says why."""

    number: int
    what: str
    bar: str
    found: str
    passed: bool | None

    def __str__(self) -> str:
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"row {self.number:2d} {verdict}: {self.what}: {self.found} (asked: {self.bar})"


def rows(found: dict[str, Found]) -> list[Row]:
    """Of all stages that have run, in the order of the table. found: by stage."""
    made: list[Row] = []
    for stages, make in TABLE:
        if all(stage in found for stage in stages):
            made += make(*(found[stage] for stage in stages))
    return sorted(made, key=lambda row: row.number)


def _subjects(found: Found) -> Iterator[Row]:
    if "bigrams" not in found:
        yield Row(1, "subjects", "trained here", "a model was given", None)
        return
    one, two = found["unigrams"], found["bigrams"]
    for name in ("A", "B"):
        loss, cost = found[name]["loss"], found[name]["without_mlp"] - found[name]["loss"]
        enough = found["tokens"] >= 10_000_000
        yield Row(
            1, f"subject {name}, tokens of training", "at least 10,000,000", f"{found['tokens']:,}", enough
        )
        is_below = loss <= one - 0.5 and loss < two
        said = f"{loss:.3f} nats; unigrams {one:.3f}, bigrams {two:.3f}"
        yield Row(
            1, f"subject {name}, held-out loss", "0.5 nats below unigrams, below bigrams", said, is_below
        )
        yield Row(
            1,
            f"subject {name}, loss without its MLP",
            "0.05 nats more",
            f"{cost:.3f} nats more",
            cost >= 0.05,
        )


def _dictionaries(found: Found, densities: Found) -> Iterator[Row]:
    l0, recovered = found["A1"]["l0"], [found[f"A{i}"]["recovered"] for i in range(3)]
    yield Row(2, "A/1, L0", "5 to 25", f"{l0:.1f}", 5 <= l0 <= 25)
    yield Row(
        2,
        "A/1, share of the MLP's loss recovered",
        "at least 75 %",
        f"{recovered[1]:.1%}",
        recovered[1] >= 0.75,
    )
    said = ", ".join(f"{one:.1%}" for one in recovered)
    rises = recovered[0] < recovered[1] < recovered[2]
    yield Row(2, "recovered by A/0, A/1, A/2 at one penalty", "rises with the size", said, rises)
    live = densities["A1"]["live"]
    yield Row(
        2, "A/1, live latents outside the ultra-low cluster", "at least 2048", f"{live:,}", live >= 2048
    )


def _densities(found: Found) -> Iterator[Row]:
    brute, a1 = found["brute_force"], found["A1"]
    apart = brute["largest_difference"]
    said = f"differ by {apart} of {brute['tokens']:,} tokens at most, over {brute['latents']} latents"
    yield Row(3, "densities beside those counted from the encoder", "the same", said, apart == 0)
    said = f"dead {a1['dead']}, ultra-low {a1['ultra_low']}, live {a1['live']}, above 1 % {a1['above_1_percent']} of {a1['latents']}"
    whole = a1["dead"] + a1["ultra_low"] + a1["live"] == a1["latents"]
    yield Row(3, "A/1, the sets", "each latent in one of them", said, whole)


def _exactness(found: Found, dictionaries: Found) -> Iterator[Row]:
    one = found["resampled"]
    worst = max(one["decoder_norm_error"], one["encoder_norm_error"], one["bias"], one["moment"])
    good = worst <= 1e-5 and one["untouched"] and one["p_value"] > 1e-3
    said = f"largest error {worst:.1e}, the others untouched: {one['untouched']}, draws by loss^2: p = {one['p_value']:.2f}"
    yield Row(4, "resampling, every clause", "exact; chi-square p > 0.001", said, good)
    with_it, without = (dictionaries[f"A1-{name}"]["dead"] for name in ("resampled", "not-resampled"))
    said = f"{with_it:.1%} with, {without:.1%} without"
    yield Row(
        4, "dead latents at the end, on the same data", "fewer with resampling", said, with_it < without
    )
    part = found["projection"]
    said = f"{part['along']:.1e} of the gradient along the row ({part['before']:.2f} before), norms off by {part['norm_error']:.1e}"
    small = part["along"] <= 1e-6 and part["norm_error"] <= 1e-6
    yield Row(5, "gradient projection and unit norm of A/1", "1e-6 each", said, small)


def _ground_truth(found: Found) -> Iterator[Row]:
    shares = {name: one["found"] for name, one in found.items()}
    control = shares.pop("topk, without b_dec")
    said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    yield Row(
        6,
        "planted directions found (cosine 0.95)",
        "95 % by some architecture",
        said,
        max(shares.values()) >= 0.95,
    )
    yield Row(6, "the same without b_dec", "fails", f"{control:.1%}", control < 0.95)


def _blind(found: Found) -> Iterator[Row]:
    one, mixed = found["planted"]["one_kind"], found["planted"]["mixtures"]
    said = f"{min(one)} to {max(one)} points of 14, mixtures {min(mixed)} to {max(mixed)}"
    good = min(one) >= 10 and max(mixed) <= 4
    yield Row(7, "planted units, rated blind by a program", "at least 10; mixtures at most 4", said, good)
    refused = found["planted"]["refused"]
    said = ", ".join(f"{what}: {'refused' if is_so else 'taken'}" for what, is_so in refused.items())
    yield Row(7, "ratings that must not unseal", "refused", said, all(refused.values()))
    for what, key in (("planted units", "leak_planted"), ("features and neurons", "leak")):
        aucs = found[key]["metadata"]
        said = (
            ", ".join(f"{name} {auc:.2f}" for name, auc in aucs.items())
            + f" (chance +- {found[key]['chance']:.2f})"
        )
        good = all(0.4 <= auc <= 0.6 for auc in aucs.values())
        yield Row(7, f"leak test, {what}: AUC from the cards without their text", "0.4 to 0.6", said, good)


def _trial(found: Found, gates: Found) -> Iterator[Row]:
    usable = {name: one["usable"] for name, one in gates.items()}
    said = ", ".join(f"{name} AUC {one['auc']:.2f}" for name, one in gates.items())
    yield Row(
        8,
        "planted units told apart by each scorer",
        "AUC 0.9 of the primary one",
        said,
        usable[found["primary"]],
    )
    of_units = found["measured"][found["primary"]]["not single token"]["spearman"]["arms"]
    for arm, one in (("features", found["registered"]), *found["also"].items()):
        what = f"{NAMES[arm]} minus neurons, mean Spearman, no single tokens"
        a, b = of_units[arm], of_units["neurons"]
        if one["difference"] is None or one["p"] is None:
            said, good = f"too few units: {a['n']} and {b['n']}", None
        else:
            said = f"{one['difference']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f}), p = {one['p']:.4f}; "
            said += f"{a['mean']:.3f} of {a['n']} units and {b['mean']:.3f} of {b['n']}"
            good = one["difference"] > 0 and one["p"] < found["threshold"]
        yield Row(8, what, f"above 0, p < {found['threshold']}", said, good)
    logits = found["measured"][found["primary"]]["all"].get("logit_accuracy", {}).get("arms")
    if logits is None or not found["gates"][found["primary"]]["logit_usable"]:
        yield Row(
            9, "explanations tested on logits", "0.05 over neurons", "the test is not usable here", None
        )
        return
    b, c = (logits[arm]["mean"] for arm in ("neurons", "shuffled"))
    for arm in ("features", *found["also"]):
        a, what = logits[arm]["mean"], f"accuracy on logits, {NAMES[arm]} over neurons"
        yield Row(9, what, "0.05 more", f"{a:.3f} and {b:.3f}", a >= b + 0.05)
    yield Row(9, "accuracy on logits, shuffled model", "0.45 to 0.55", f"{c:.3f}", 0.45 <= c <= 0.55)


def _control(found: Found) -> Iterator[Row]:
    share = {arm: one["single_token"] / max(one["units"], 1) for arm, one in found["arms"].items()}
    said = f"{share['shuffled']:.1%} of its latents, {share['features']:.1%} of the features"
    good = share["shuffled"] > share["features"]
    yield Row(10, "single tokens in the shuffled model", "a larger share than of the features", said, good)
    of_units = found["measured"][found["primary"]]["not single token"]["spearman"]["arms"]
    a, c = of_units["features"]["mean"], of_units["shuffled"]["mean"]
    if a is None or c is None:
        yield Row(10, "shuffled model, no single tokens", "at most as good", "too few units", None)
    else:
        yield Row(
            10,
            "shuffled model, Spearman, no single tokens",
            "at most that of the features",
            f"{c:.3f} and {a:.3f}",
            c <= a,
        )


def _contexts(found: Found) -> Iterator[Row]:
    known = {row["context"]: row for row in found["rows"]}
    for name in ASKED:
        if name not in known:
            n = found["skipped"].get(name, 0)
            yield Row(11, name, "in the text", f"{n} tokens of it in the held-out text: skipped", None)
            continue
        row = known[name]
        one, other = row["feature"], row["neuron"]
        top = 0.0 if one["top_half"] is None else one["top_half"]
        said = f"{row['dictionary'][0]}/{row['dictionary'][1:]} {one['latent']} AUC {one['auc']:.3f}, top half {top:.0%}; neuron {other['latent']} AUC {other['auc']:.3f}"
        bar = "AUC 0.95, 80 % of the top half in it, 0.05 over the best neuron"
        yield Row(11, name, bar, said, not row["missed"])


def _neurons(found: Found) -> Iterator[Row]:
    best, wide = found["median_best_neuron"], found["median_participation"]
    said = f"{best:.2f}; a latent writes to {wide:.0f} neurons (participation ratio, median)"
    yield Row(12, "correlation of a feature with its best neuron, median", "below 0.6", said, best < 0.6)


def _effects(found: Found) -> Iterator[Row]:
    for name, one in found["contexts"].items():
        ratio, inside = one["ablation"]["ratio"]["value"], one["ablation"]["inside"]["value"]
        times = "no effect outside" if ratio is None else f"{ratio:.1f} times"
        good = (ratio is None or ratio >= 5) and inside > 0
        said = f"{times} ({inside:.4f} nats inside)"
        yield Row(13, f"{name} feature taken out: loss in the context over outside", "5 times", said, good)
        pinned, free = (one["pinned"][arm]["share"] for arm in ("pinned", "unpinned"))
        good = pinned >= 0.5 and free <= 0.05
        yield Row(
            13,
            f"{name} feature pinned: samples of it",
            "50 % (5 % unpinned)",
            f"{pinned:.0%} ({free:.0%})",
            good,
        )
    off = found["splice"]["relative"]
    yield Row(13, "x_hat + (x - x_hat) in the model", "its logits to 1e-5", f"{off:.1e}", off <= 1e-5)


def _universality(found: Found) -> Iterator[Row]:
    if "skipped" in found:
        yield Row(14, "universality", "features 0.1 over neurons", found["skipped"], None)
        return
    a, b = (found[name]["activation"]["median"] for name in ("features", "neurons"))
    said = f"{a:.2f} and {b:.2f}"
    yield Row(
        14, "best match in the other model, median: features and neurons", "0.1 more", said, a >= b + 0.1
    )
    chance = found["features"]["permuted"]["median"]
    yield Row(
        14, "the same with the tokens of the other permuted", "about 0", f"{chance:.3f}", abs(chance) <= 0.05
    )


def _splitting(found: Found) -> Iterator[Row]:
    step = found["steps"][0]
    yield Row(
        15, "features of A/0 with two children or more", "50 %", f"{step['split']:.0%}", step["split"] >= 0.5
    )
    lower = step["lower_density_where_split"] or 0.0
    yield Row(15, "their children that are active on fewer tokens", "70 %", f"{lower:.0%}", lower >= 0.7)


def _automata(found: Found) -> Iterator[Row]:
    pairs, states = found["planted"]["pairs"], found["planted"]["states"]
    yield Row(30, "a planted cycle of two states", f"{states} alone", f"{pairs}", found["planted"]["found"])
    n = found["n_loops_of_contexts"]
    said = f"{n} self loops of contexts, {len(found['pairs'])} cycles of two states"
    yield Row(30, "next-step graph of A/1", "a self loop of a context", said, n >= 1)


TABLE: list[tuple[tuple[str, ...], Callable[..., Iterator[Row]]]] = [
    (("subjects",), _subjects),
    (("dictionaries", "densities"), _dictionaries),
    (("densities",), _densities),
    (("exactness", "dictionaries"), _exactness),
    (("ground_truth",), _ground_truth),
    (("blind",), _blind),
    (("trial", "gates"), _trial),
    (("trial",), _control),
    (("contexts",), _contexts),
    (("neurons",), _neurons),
    (("control",), _effects),
    (("universality",), _universality),
    (("splitting",), _splitting),
    (("automata",), _automata),
]
