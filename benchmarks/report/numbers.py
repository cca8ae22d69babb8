"""Tables of numbers that are not times: whether ours are right, and what quality they reach."""

from typing import Any

from benchmarks.report.peers import markdown, read


def numbers_table() -> str:
    demo, parity, recipe, interpreted = (
        read(name) for name in ("demo", "curve_parity", "recipe", "interpreter_run")
    )
    model = demo["in_model"]
    rows = [
        ["what", "measured", "command"],
        [
            "The demo's SAE on held-out tokens: FVU",
            f"{demo['fvu']:.4f} at L0 {demo['l0']:.1f}",
            "`make demo`",
        ],
        [
            "The same inside the language model: loss recovered",
            f"{model['loss_recovered']:.1%} of zero ablation, {model['loss_recovered_mean']:.1%} of mean ablation",
            "`make demo`",
        ],
    ]
    for name in ("plain", "reference"):
        if name in parity:
            rows += parity_rows(name, parity[name])
    for who in dict.fromkeys(run["who"] for run in recipe["runs"]):
        runs = [run for run in recipe["runs"] if run["who"] == who]
        best = min((run for run in runs if run["seed"] == 0), key=lambda run: run["fvu"])
        setting = best["lr"], best["batch_size"]
        same = [run["fvu"] for run in runs if (run["lr"], run["batch_size"]) == setting]
        text = f"{best['fvu']:.4f} (lr {best['lr']:g}, batch {best['batch_size']})"
        if len(same) > 1:
            text += f"; over {len(same)} seeds {min(same):.4f} to {max(same):.4f}"
        rows.append(
            [f"Held-out FVU after {recipe['tokens']:,} tokens, best setting of {who}", text, "`recipe.py`"]
        )
    rows += [trainers_row(), sweep_row()]
    what = (
        "Triton kernels in the interpreter beside the reference, {steps} steps on real activations: largest "
        "relative difference of the loss (and the one-ulp control's)"
    )
    distances = f"{interpreted['loss_distance_all_steps']:.0e} ({interpreted['control_all_steps']:.0e})"
    rows.append([what.format(**interpreted["shape"]), distances, "`interpreter_run.py`"])
    return markdown(rows)


def trainers_row() -> list[str]:
    """Ours beside the peers' own trainers: FVU and L0, means over the seeds."""
    rows = read("parity")["rows"]
    off = {name: abs(row["fvu"]["ours / theirs - 1"]) for name, row in rows.items()}
    off_l0 = {name: abs(row["l0"]["ours / theirs - 1"]) for name, row in rows.items()}
    worst, worst_l0 = max(off, key=off.__getitem__), max(off_l0, key=off_l0.__getitem__)
    kept = sum(off[name] <= 0.01 and off_l0[name] <= 0.01 for name in rows)
    return [
        (f"{len(rows)} recipes beside the trainers of dictionary_learning, sparsify and SAELens, same rows: FVU and L0 "
        "within 1%"),
        f"{kept} of {len(rows)}; FVU at most {off[worst]:.1%} off ({worst}), L0 {off_l0[worst_l0]:.1%} ({worst_l0})",
        "`parity_peers.py`, `parity.py`",
    ]  # fmt: skip


def sweep_row() -> list[str]:
    found = read("sweep")
    live = found["from a live model"]
    ratio = live["sweep"]["wall_s"] / live["12 runs"]["wall_s"]
    args, widths = found["args"], found["widths"]
    return [
        f"A sweep of 12 SAEs ({args['tokens']:,} tokens, widths {min(widths)} to {max(widths)}) beside 12 runs, wall time",
        (f"{found['ratio']['wall_s']:.2f} times, from shards; {ratio:.2f} times from a model that runs meanwhile "
        f"({args['live_tokens']:,} tokens)"),
        "`sweep_cost.py`",
    ]  # fmt: skip


def parity_rows(name: str, case: dict[str, Any]) -> list[list[str]]:
    """The two answers of curve_parity.py."""
    other = {"plain": "plain autograd + `torch.optim.Adam`", "reference": "the specification"}[name]
    forced, alone = case["from the same state"], case["left alone"]
    factor = max(forced["rms error of saefast over that of the other"].values())
    apart, fvu = dict(alone["apart"]), alone["heldout_fvu"]
    rows = {
        "ours": [apart.pop("saefast")],
        f"{len(apart) - 1} controls": [v for k, v in apart.items() if k != name],
    }
    texts = []
    for who, curves in rows.items():
        firsts = sorted(curve["first step apart"] or alone["steps"] + 1 for curve in curves)
        largest = sorted(list(curve["largest relative difference"].values())[-1] for curve in curves)
        if curves:
            texts.append(
                f"{who}: from step {' to '.join(map(str, dict.fromkeys((firsts[0], firsts[-1]))))}, "
                f"at most {' to '.join(dict.fromkeys((f'{largest[0]:.0e}', f'{largest[-1]:.0e}')))}"
            )
    states = f"{forced['states']} states ({forced['of them with AuxK']} with AuxK)"
    mine, theirs = forced["saefast"], forced[name]
    error, choices = "loss, largest relative error", "choices unlike fp64's: top-k, AuxK"
    what = f"A step beside {other}, from the same {states}, against fp64 with the same choices"
    found = (
        f"loss off by at most {mine[error]:.0e}, the other's {theirs[error]:.0e}; rms error of what it changes at most "
        f"{factor:.2f} times the other's; choices within rounding but unlike fp64's: {sum(mine[choices])}, the other's "
        f"{sum(theirs[choices])}"
    )
    left = f"Left alone for {alone['steps']} steps beside {other}: where the loss is more than 1e-6 off"
    end = f"held-out FVU {fvu['saefast']:.4f}, the other's {fvu[name]:.4f}"
    command = "`curve_parity.py`"
    return [[what, found, command], [left, "; ".join([*texts, end]), command]]
