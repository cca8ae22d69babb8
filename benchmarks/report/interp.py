"""The tables on looking inside: recording every latent, and SAEDashboard beside it."""

from benchmarks.report.tables import Result, Rows, Section, shape_text, source, spread, table


def records(found: Result) -> Section:
    """Recording every latent beside the encoder alone."""
    shape, rates = found["shape"], found["tokens a second"]
    [(what, a_minute)] = ((key, value) for key, value in found.items() if key.startswith("latents a minute"))
    rows: Rows = [["", "tokens/s", "records over encoder", what]]
    rows.append(["the encoder alone", spread(rates["encoder"], "{:,.0f}"), "", ""])
    share, each = spread(found["records / encoder"], "{:.2f}"), spread(a_minute, "{:,.0f}")
    rows.append(["records of all latents", spread(rates["records"], "{:,.0f}"), share, each])
    about = (
        f"{shape['tokens']:,} tokens in prompts of {shape['prompt']} ({shape_text(shape)}), from cached activations. Latents a "
        "minute at SAEDashboard's default number of tokens are extrapolated from that; what each latent costs beside its entries "
        "would weigh less there."
    )
    return [f"{source('pytest benchmarks/interp/bench_records.py', found['machine'])} {about}", table(rows)]


def sae_dashboard(found: Result) -> Section:
    """Its own runner beside ours."""
    shape = found["shape"]
    rows: Rows = [
        ["activation", "tokens", "SAEDashboard", "records", "times", "records, effects, files", "times"]
    ]
    for kind, sizes in found["results"].items():
        for tokens, case in sizes.items():
            theirs, *ours = case["latents a minute"].values()
            cells = [f"{theirs:,.0f}"]
            for rate, times in zip(ours, case["times SAEDashboard"].values(), strict=True):
                cells += [f"{rate:,.0f}", f"{times:.1f}"]
            rows.append([kind, tokens.replace(" tokens", ""), *cells])
    about = (
        f"Not part of `make bench`. Latents a minute, on the same SAE ({shape_text(shape)}), tokens and cached activations; "
        f"SAEDashboard {shape['sae-dashboard']} with its defaults, 128 latents at a time, of which it encodes those alone "
        "where the activation is JumpReLU, and all where it is TopK."
    )
    return [f"{source('benchmarks/interp/sae_dashboard.py', found['machine'])} {about}", table(rows, 2)]
