"""Recording every latent beside the encoder alone, over the same cached activations.

    pytest benchmarks/interp/bench_records.py             prints the ratio, about two minutes
    pytest benchmarks/interp/bench_records.py --results   and writes benchmarks/results/cpu/records.json

The demo's text (data/acts-corpus, `make demo`) as prompts of 128 tokens, twice: SAEDashboard's default is 24,576 such prompts,
3.1 million tokens, to which latents a minute are extrapolated at the measured rate. The encoder reads the same shards in the
same batches and keeps nothing. Counts and the examples of some latents are compared with the specification in the same run.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measuring import interleaved, ratio, spread, write_result
from saefast import SAE, SAEConfig, TrainConfig, Trainer, open_source
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.backend import load_backend
from saefast.interp.records import RecordsConfig, record, select
from saefast.interp.records.batches import text_rows
from saefast.sae.inference import encode

SHARDS, PROMPT, DASHBOARD_TOKENS = Path("data/acts-corpus"), 128, 24_576 * 128
SIZES = {
    "smoke": (256, 8, 1, 2_000),
    "corpus": (9216, 32, 2, 120_000),
}  # d_sae, k, times the text, tokens of training
ROUNDS, CHECKED = 5, 16


def prompts(folder: Path, times: int, most: int | None = None) -> ShardSource:
    """The demo's shards, each of their contexts cut into prompts; random ones where there is no demo."""
    if not SHARDS.exists():
        writer = ShardWriter(folder, 64, torch.float16, "none", "none")
        contexts = torch.randint(0, 99, (24, PROMPT), dtype=torch.int32)
        n = torch.arange(contexts.numel(), dtype=torch.int64)
        writer.append(torch.randn(len(n), 64).half(), contexts, n // PROMPT, n % PROMPT)
        writer.close()
        return open_source(folder)
    source = open_source(SHARDS)
    shards = range(len(source.index["shards"]))[:most]
    writer = ShardWriter(folder, source.d_in, torch.float16, source.index["model"], source.index["hook"])
    for shard in (source.shard(i) for _ in range(times) for i in shards):
        contexts = shard["contexts"].view(-1, PROMPT)
        each = shard["contexts"].shape[1] // PROMPT
        position = shard["position"].long()
        context = shard["context"].long() * each + position // PROMPT
        writer.append(shard["activations"], contexts, context, position % PROMPT)
    writer.close()
    return open_source(folder)


def counts_and_encoder(sae: SAE, source: ShardSource) -> tuple[torch.Tensor, Callable[[object], None]]:
    """How often each latent is active, and a pass of the encoder."""
    ops = load_backend("auto", "cpu")

    @torch.no_grad()
    def batches():
        for batch in text_rows(source):
            x = batch.x.to(sae.params.b_dec)
            yield encode(ops, sae.params, sae.extra, sae.config, x)

    counts = torch.zeros(sae.config.d_sae, dtype=torch.int64)
    for acts, indices in batches():
        counts += torch.bincount(indices[acts > 0], minlength=sae.config.d_sae)

    def encoder(_: object) -> None:
        for _ in batches():
            pass

    return counts, encoder


@pytest.mark.parametrize("size", SIZES)
def bench_records(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    d_sae, k, times, n_trained = SIZES[size]
    if size != "smoke" and not SHARDS.exists():
        pytest.skip(f"{SHARDS}: `make demo` makes it")
    source = prompts(tmp_path / "acts", times, 1 if size == "smoke" else None)
    torch.manual_seed(0)
    sae = SAE(SAEConfig(d_in=source.d_in, d_sae=d_sae, k=k))
    Trainer(sae, TrainConfig(total_tokens=n_trained, batch_size=1024, lr=3e-3)).fit(source)
    counts, encoder = counts_and_encoder(sae, source)

    def records(_: object) -> None:
        shutil.rmtree(tmp_path / "records", ignore_errors=True)
        made.append(record(sae, source, tmp_path / "records", separators=[2]))

    made: list[Any] = []
    records(None)
    assert made[0].table()["count"].to_pylist() == counts.tolist()
    check_examples(made[0])
    if size == "smoke":
        return
    seconds = interleaved({"encoder": encoder, "records": records}, itertools.repeat(torch.empty(0)), ROUNDS)
    rates = {name: spread([len(source) / each for each in times], 0) for name, times in seconds.items()}
    share = ratio(seconds["encoder"], seconds["records"])
    a_minute = [round(60 * d_sae * rate / DASHBOARD_TOKENS) for rate in rates["records"]]
    with capsys.disabled():
        print(f"\nall {d_sae:,} latents of {len(source):,} tokens, k {k}: tokens a second {rates}, records / encoder {share}, "
              f"latents a minute at {DASHBOARD_TOKENS:,} tokens {a_minute}")  # fmt: skip
    if pytestconfig.getoption("results"):
        shape = {"d_in": source.d_in, "d_sae": d_sae, "k": k, "tokens": len(source), "prompt": PROMPT}
        found = {"shape": shape, "tokens a second": rates, "records / encoder": share}
        write_result("records", found | {f"latents a minute at {DASHBOARD_TOKENS} tokens": a_minute})


def check_examples(records: Any) -> None:
    """Those of some latents, the most active one among them, are those of the specification."""
    total = records.table(["count"])["count"].to_numpy()
    latents = {int(total.argmax()), *range(0, records.d_sae, records.d_sae // CHECKED)}
    for latent in latents:
        want = select.select(records.blocks, latent, latent + 1, records.text, RecordsConfig()).slots[0]
        length = records.text.length
        of = [example for group in records.latent(latent).examples.values() for example in group]
        assert [one.context * length + one.position for one in of] == want[want >= 0].tolist(), latent
