"""Tables of time and memory of ours, from benchmarks/results/: ops, scaling, the largest dictionary, end to end."""

from typing import Any

from benchmarks.report.peers import label, left_out, machine_text, markdown, read, shape_text, times


def milliseconds(spread: list[float]) -> str:
    """Of seconds: the median to three digits."""
    return f"{1e3 * spread[0]:.3g} ms"


# ops


def ops_table() -> str:
    """A row for each op and shape: plain PyTorch, the other ways as multiples of its speed, and the backend of ours."""
    found = read("ops")
    mine = "triton" if any(row["contender"] == "triton" for row in found["rows"]) else "native"
    cases: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in found["rows"]:
        cases.setdefault((row["op"], " ".join(map(str, row["shape"]))), {})[row["contender"]] = row
    rows = [
        ["op; shape", "plain PyTorch", "times as fast", f"saefast ({mine})", "times as fast", "share of the floor",
         "rate", "peak MiB (plain)"]
    ]  # fmt: skip
    for (op, shape), by in cases.items():
        plain, ours = by["plain"], by.get(mine)
        others = [
            f"{name} {row['times as fast as plain'][0]:.2f}"
            for name, row in by.items()
            if name not in ("plain", mine)
        ]
        cells = ["", "", "", "", f"({plain['peak MiB']:.0f})"]
        if ours:
            unit = "GB/s" if "GB/s" in ours else "GFLOP/s"
            cells = [
                milliseconds(ours["seconds"]), "{:.2f} ({:.2f} to {:.2f})".format(*ours["times as fast as plain"]),
                f"{ours['share of floor']:.0%}", f"{ours[unit]:.0f} {unit}",
                f"{ours['peak MiB']:.0f} ({plain['peak MiB']:.0f})",
            ]  # fmt: skip
        rows.append([f"{op}; {shape}", milliseconds(plain["seconds"]), ", ".join(others), *cells])
    floor = ", ".join(f"{value:g} {unit}" for unit, value in found["device"].items())
    return (
        f"`pytest benchmarks`; {machine_text(found['machine'])}. Every result was compared with fp64 or the reference before "
        f"it was timed. The floor takes what was measured in the same session: {floor}. Above 100%: what is still in cache "
        "moves faster than a copy of main memory, and the encoder screens in 8 bits where the floor has an fp32 product. "
        "Peak memory is that of one call above what is held between calls.\n\n" + markdown(rows)
    )  # fmt: skip


# scaling


def scaling_tables() -> str:
    found = read("scaling")
    parts = [
        (
            f"`benchmarks/peers/scaling.py`; {machine_text(found['machine'])}. One size moves at a time from "
            f"{shape_text(found['base'])}; an exponent is the slope in log-log, with its standard error."
        )
    ]
    for what, axis in found["seconds"].items():
        names = list(axis["points"][0])
        rows = [[what, *names]]
        for value, point in zip(axis["values"], axis["points"], strict=True):
            first = milliseconds(point[names[0]]["seconds"])
            others = [f"{times(point[n]['ratio'])} times" if n in point else "" for n in names[1:]]
            rows.append([f"{value:,}", first, *others])
        rows.append(["exponent", *("{:.2f} ± {:.2f}".format(*axis["exponents"][n]) for n in names)])
        parts.append(markdown(rows))
    peaks = found["peak MiB"]
    names = list(peaks["points"][0])
    rows = [
        ["d_sae: peak MiB", *("`saefast.train.memory` says" if n == "memory_bytes" else n for n in names)]
    ]
    for value, point in zip(peaks["values"], peaks["points"], strict=True):
        rows.append([f"{value:,}", *(f"{point[n]['MiB'][0]:.0f}" if n in point else "" for n in names)])
    rows.append(["exponent", *("{:.2f} ± {:.2f}".format(*peaks["exponents"][n]) for n in names)])
    return "\n\n".join([*parts, markdown(rows)])


# the largest dictionary


def largest_table() -> str:
    found = read("largest")
    versions, budget = found["machine"]["versions"], found["budget GiB"]
    rows = [["", f"the largest d_sae in {budget} GiB", "bytes per latent", "did not fit"]]
    ordered = sorted(found["largest"].items(), key=lambda item: item[1]["d_sae"] or 0, reverse=True)
    for name, row in ordered:
        over = min((t for t in row["trials"] if not t["fits"]), key=lambda t: t["d_sae"], default=None)
        why = f"{over['d_sae']:,}: {over['why']}" if over else ""
        size = f"{row['d_sae']:,}" if row["d_sae"] else "not even the first trial"
        rows.append([label(name, versions), size, f"{row.get('bytes per latent', 0):,}", why])
    rows += left_out(found, len(rows[0]))
    shape = "B {B}, d_in {d_in}, k {k}".format(**found["shape"])
    return (
        f"`benchmarks/peers/scaling.py --largest` (not part of `make bench`); {machine_text(found['machine'])}. Two steps at {shape} "
        f"in a process that is killed above {budget} GiB, with everything that it imports.\n\n" + markdown(rows)
    )  # fmt: skip


# end to end


def pipeline_table() -> str:
    found = read("pipeline")
    stages = [["a stage alone", "tokens/s"]]
    fits = [
        [
            "trained",
            "tokens/s",
            "share of the time waiting",
            "of the rate that its stages allow",
            "times as long as from memory",
        ]
    ]
    for case in (value for key, value in found.items() if key != "machine"):
        shape = "B {B}, d_in {D}, d_sae {F}, k {K}".format(**case["shape"])
        for part in ("shards", "model"):
            if part not in case:
                continue
            for name, values in case[part]["stages, tokens/s"].items():
                stages.append([f"{name} ({shape})", "{:,.0f} ({:,.0f} to {:,.0f})".format(*values)])
            for name, fit in case[part]["fits"].items():
                expected = f"{fit['over expected'][0]:.2f}" if "over expected" in fit else ""
                fits.append(
                    [
                        f"{name} ({shape})", "{:,.0f} ({:,.0f} to {:,.0f})".format(*fit["tokens/s"]),
                        f"{fit['share waiting'][0]:.1%}", expected, times(fit["over in memory"]),
                    ]
                )  # fmt: skip
    return (
        f"`benchmarks/activations/pipeline.py`; {machine_text(found['machine'])}; files in the page cache. All stages share the cores of a "
        "CPU, so a token takes the sum of their times there.\n\n" + markdown(fits) + "\n\n" + markdown(stages)
    )  # fmt: skip
