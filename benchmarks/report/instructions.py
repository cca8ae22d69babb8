"""The tables on the CPU engine with more and with fewer instructions."""

from benchmarks.report.tables import (
    Result,
    Rows,
    Section,
    label,
    milliseconds,
    shape_text,
    source,
    spread,
    table,
)

NAMES = {"vnni": "AVX-512 VNNI", "avx2": "AVX2 alone"}


def instructions(found: Result) -> Section:
    about = (
        "Each in a process that is held to these instructions, engine, torch and MKL alike; buffers kept. A processor that has no "
        "others also has another clock and other caches."
    )
    parts = [f"{source('benchmarks/peers/instructions.py', found['machine'])} {about}"]
    shapes = {
        name: dict(zip(("B", "d_in", "d_sae", "k"), shape, strict=True))
        for name, shape in found["shapes"].items()
    }
    by_isa = found["instructions"]
    for batch in next(iter(by_isa.values()))["encoders"]:
        rows: Rows = [
            ["encoder", *(f"{NAMES[isa]}, {what}" for isa in by_isa for what in ("ms", "ratio")), ""]
        ]
        for name in next(iter(by_isa.values()))["encoders"][batch]:
            row: list[str | tuple[float, ...]] = [name]
            of = ""
            for case in by_isa.values():
                one = case["encoders"][batch][name]
                of = next((key for key in one if key.startswith("over")), "")
                row += [milliseconds(one["seconds"][0]), spread(one[of], "{:.2f}") if of else ""]
            rows.append([*row, of])
        parts += [f"Encoders, {shape_text(shapes[batch])}:", table(rows)]
    for name in next(iter(by_isa.values()))["steps"]:
        heads = (f"{NAMES[isa]}, {what}" for isa in by_isa for what in ("ms", "times as long"))
        rows = [["step", *heads]]
        for contender in next(iter(by_isa.values()))["steps"][name]:
            row = [label(contender, found["machine"]["versions"])]
            for case in by_isa.values():
                one = case["steps"][name][contender]
                row += [milliseconds(one["seconds"][0]), spread(one["times ours"])]
            rows.append(row)
        parts += [f"A step, {shape_text(shapes[name])}:", table(rows)]
    return parts
