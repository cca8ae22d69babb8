"""Every unit of a dictionary as large as all MLP neurons of GPT-2 XL (48 x 6400 = 307,200), explained and scored without a model.

    python -m benchmarks.interp.explain_all FOLDER     into benchmarks/results/cpu/explain_all.json; FOLDER keeps the records
    python -m benchmarks.interp.explain_all --smoke    tiny, nothing is kept

The text is the demo's, in contexts of 64 tokens. The activations are made: a row is a random vector of its token and, smaller, one of
the token before, and the units are those of a top-k SAE with random weights on them, 32 active on each token. (The neurons of the model
itself would take a pass of GPT-2 XL.) So a unit is a mix of tokens, and its scores say nothing about any model; time, memory and
bytes are what is measured. The look-up table explains, and predicts itself; scored are 5 top and 5 random excerpts of 64 tokens.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import peak_mib, reset_peak, write_result
from saefast import SAE, SAEConfig
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.interp.explain.every import RESULTS, Units, explain_every
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scoring import SHORT, Scoring
from saefast.interp.explain.summary import MAIN, Summary
from saefast.interp.records import Records, RecordsConfig, record
from saefast.interp.vocabulary import Vocabulary, tokenizer_of

LM, CORPUS, LENGTH, D_IN = "data/smollm2-135m", Path("data/corpus.jsonl"), 64, 32
UNITS = 307_200
FEW = RecordsConfig(
    n_intervals=0, per_interval=0, n_quantiles=0, n_random=0, n_inactive=0
)  # examples for pages


def made(folder: Path, vocabulary: Vocabulary, eos: int, n_units: int, n_texts: int | None) -> Records:
    """The records in a folder, made if they are not there."""
    texts = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()[:n_texts]]
    encode = vocabulary.tokenizer
    ids = [token for text in texts for token in [*encode(text).input_ids, eos]]
    contexts = torch.tensor(ids[: len(ids) // LENGTH * LENGTH], dtype=torch.int64).view(-1, LENGTH)
    if not (folder / "acts").exists():
        generator = torch.Generator().manual_seed(0)
        own, earlier = (torch.randn(len(vocabulary), D_IN, generator=generator) for _ in range(2))
        writer = ShardWriter(folder / "acts", D_IN, torch.float16, LM, "none")
        for part in contexts.split(2048):
            before = earlier[part.roll(1, dims=1)]
            before[:, 0] = 0
            x, place = (own[part] + 0.6 * before).half().flatten(0, 1), torch.arange(part.numel())
            writer.append(x, part.int(), place // LENGTH, place % LENGTH)
        writer.close()
    torch.manual_seed(0)
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=n_units, k=32))
    return record(sae, ShardSource(folder / "acts"), folder / "records", FEW, separators=[eos])


def run(folder: Path, n_units: int, n_texts: int | None, limit: int | None = None) -> dict[str, Any]:
    vocabulary, eos = tokenizer_of(LM)
    assert eos is not None
    start = time.perf_counter()
    records = made(folder, vocabulary, eos, n_units, n_texts)
    seconds_of_records = time.perf_counter() - start
    judge = ProgramJudge(Tiles(records, "explain", SHORT))
    scoring = Scoring(records, judge, ["simulation"], draws=0, random_only=False)
    latents = np.flatnonzero(records.table(["count"])["count"].to_numpy() > 0)
    units = Units("units", records, latents, LookUp(records, vocabulary), scoring, lambda latent: False)
    out = folder / "explained"
    before, start = reset_peak(), time.perf_counter()
    explain_every([units], out, {"explained by": "lookup"}, limit=limit, controls=1000)
    seconds = time.perf_counter() - start
    memory, summary = peak_mib(before), Summary(out / RESULTS)
    check(records, LookUp(records, vocabulary), out / RESULTS)
    group = summary.groups["units", "all", MAIN]
    n = summary.units["units"]
    return {
        "units": n,
        "tokens": records.n_rows,
        "entries": sum(int(block.offsets[-1]) for block in records.blocks),
        "s for the records, or to open those that are there": round(seconds_of_records, 1),
        "s to explain and score": round(seconds, 1),
        "ms a unit": round(1000 * seconds / n, 2),
        "MiB of memory, at most, beside the records": round(memory),
        "bytes of results a unit": round((out / RESULTS).stat().st_size / n),
        "not scored": dict(summary.unscored["units"]),
        "mean correlation": round(group.mean.value, 4),
        "mean correlation, another unit's explanation": round(group.controls["shuffled"], 4),
        "at least 0.8": group.above,
    }


def check(records: Records, explainer: LookUp, results: Path, n: int = 8) -> None:
    """The scores of some units again, by hand: 5 top and 5 random windows, Pearson of all their tokens."""
    from saefast.interp.explain.examples import top_and_random
    from saefast.interp.lines import read_lines

    tiles, lines = Tiles(records, "score", LENGTH), read_lines(results)
    next(lines)
    scored = [row for row, _ in zip((row for row in lines if row["scores"]), range(n), strict=False)]
    assert scored
    for row in scored:
        examples = top_and_random(tiles, row["latent"])
        predicted = explainer.explain(row["latent"]).means[examples.tokens]
        want = np.corrcoef(examples.acts.ravel(), predicted.ravel())[0, 1]
        assert abs(want - row["scores"]["simulation"]["ev_correlation_score"]) < 2e-6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", help="where the records and the results are kept")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(run(Path(name), 2048, 60), indent=1))
        return
    if args.folder is None:
        parser.error("FOLDER, for 4 GB of records and results")
    found = run(Path(args.folder), UNITS, None)
    print(json.dumps(found, indent=1))
    write_result("explain_all", found)


if __name__ == "__main__":
    main()
