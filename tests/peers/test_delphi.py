"""Latent caches, explanations and scores beside the real package of delphi (eai-delphi, installed without what it depends on)."""

import asyncio
import importlib
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from saefast.interp.effects.checks import check_same
from saefast.interp.exchange.delphi import export_delphi
from saefast.interp.exchange.delphi_explanations import export_delphi_explanations, read_delphi_explanations
from saefast.interp.exchange.delphi_reading import read_delphi
from saefast.interp.neurons import neurons
from saefast.interp.records.tables import EXAMPLES, LATENTS
from tests.helpers.delphi_cache import DEAD, HOOK, F, L, M, a_code, contexts, raw, recorded
from tests.helpers.small_records import CONFIG

# Gigabytes that only its explainers and a search by embeddings use; imported wherever delphi is
HEAVY = ("faiss", "sentence_transformers", "tiktoken", "vllm", "vllm.distributed")
HEAVY += ("vllm.distributed.parallel_state", "vllm.inputs")
MODULES = (
    "config",
    "explainers",
    "latents",
    "latents.loader",
    "log.result_analysis",
    "scorers",
    "clients.client",
)
WINDOW = 8


@pytest.fixture(scope="module")
def delphi():
    """Its modules under their last names."""
    if find_spec("delphi") is None or find_spec("delphi.latents") is None:
        pytest.skip("eai-delphi is not installed")
    importlib.import_module(
        "sparsify"
    )  # datasets, below it, asks for faiss, and must not find the one that stands in
    with pytest.MonkeyPatch.context() as patch:
        for name in HEAVY:
            patch.setitem(sys.modules, name, MagicMock(__spec__=None))
        modules = {name.split(".")[-1]: importlib.import_module(f"delphi.{name}") for name in MODULES}
    return SimpleNamespace(**modules)


class Words:
    """Of a tokenizer what delphi calls."""

    def batch_decode(self, tokens):
        return [f" w{int(token)}" for token in tokens]


class Model(torch.nn.Module):
    """A language model whose module "layers.3" gives these rows [m, L, F], context after context."""

    device = "cpu"

    def __init__(self, rows):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
        self.rows, self.n = rows, 0

    def forward(self, batch):
        self.n += len(batch)
        return self.layers[3](self.rows[self.n - len(batch) : self.n])


def rows_of(code):
    """Rows of which the neurons are the code: what is not active is negative; a few activations are near delphi's bounds."""
    code[0, 0, 0], code[0, 1, 0], code[0, 2, 0] = (
        1e-5,
        float(np.nextafter(np.float32(1e-5), np.float32(1))),
        65519,
    )
    return torch.where(code > 0, code, -1.0)


def dataset(delphi, out, latents=None):
    return delphi.loader.LatentDataset(
        out / "latents",
        delphi.config.SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2),
        delphi.config.ConstructorConfig(example_ctx_len=WINDOW, min_examples=1, n_non_activating=2),
        tokenizer=Words(),
        latents=None if latents is None else {HOOK: torch.tensor(latents, dtype=torch.int64, device="cpu")},
    )


def cached(delphi, out, rows, n_splits):
    """What delphi itself writes of the neurons of these rows."""
    cache = delphi.latents.LatentCache(Model(rows), {HOOK: torch.relu}, batch_size=4, log_path=out / "log")
    (out / "log").mkdir(parents=True)
    cache.run(M * L, contexts().long())
    cache.save_splits(n_splits, out / "latents")
    config = delphi.config.CacheConfig(cache_ctx_len=L, n_tokens=M * L, n_splits=n_splits)
    cache.save_config(out / "latents", config, "a model")
    return out / "latents" / HOOK


def test_our_cache_is_its_cache(delphi, tmp_path):
    rows = rows_of(a_code())
    theirs = raw(cached(delphi, tmp_path / "theirs", rows, 3))
    written = export_delphi(recorded(tmp_path, rows), tmp_path / "ours", hookpoint=HOOK, n_splits=3)
    ours = raw(written.folder)
    assert ours.pop("config.json") and theirs.pop("config.json") and len(theirs) == 3
    assert ours == theirs and written.n_small == 1
    counts = [tmp_path / name / "log" / "hookpoint_firing_counts.pt" for name in ("ours", "theirs")]
    ours, theirs = (torch.load(path, weights_only=True) for path in counts)
    assert ours.keys() == theirs.keys() and torch.equal(ours[HOOK], theirs[HOOK])


def test_its_cache_gives_the_records_of_the_sae(delphi, tmp_path):
    code = a_code()
    rows = torch.where(code > 0, code, -1.0)
    want, sae = recorded(tmp_path, rows), neurons(F)
    found = read_delphi(cached(delphi, tmp_path, rows, 2), tmp_path / "read", CONFIG, sae=sae, separators=[7])
    check_same(found, sae)
    for name in (LATENTS, EXAMPLES):
        assert (found.folder / name).read_bytes() == (want.folder / name).read_bytes()
    assert np.array_equal(found.text.contexts, want.text.contexts)


@pytest.mark.parametrize("latents", [None, [0, 3, 8]])
def test_its_dataset_has_the_windows_of_the_code(delphi, tmp_path, latents):
    """A split of each latent, one of which has no entries."""
    code = a_code()
    export_delphi(recorded(tmp_path, code), tmp_path, hookpoint=HOOK, n_splits=F)
    data = dataset(delphi, tmp_path, latents)
    assert torch.equal(data.tokens, contexts().long())
    windows, tokens = code.reshape(-1, WINDOW, F), contexts().reshape(-1, WINDOW)
    found = {one.latent.latent_index: one for one in data}
    assert sorted(found) == (latents or [i for i in range(F) if i != DEAD])
    for latent, one in found.items():
        active = windows[..., latent].amax(1) > 0
        want = sorted(zip(windows[active][..., latent].tolist(), tokens[active].tolist(), strict=True))
        got = [(example.activations.tolist(), example.tokens.tolist()) for example in one.examples]
        assert sorted(got) == want
        peaks = [max(acts) for acts, _ in got]
        assert peaks == sorted(peaks, reverse=True) and one.max_activation == code[..., latent].max()
        assert one.per_token_frequency == (code[..., latent] > 0).sum() / (M * L)
        quiet = tokens[~active].tolist()
        assert all(example.tokens.tolist() in quiet for example in one.not_active)


def test_its_scores_are_read_as_its_log_computes_them(delphi, tmp_path):
    """Its scorer asks a client that says what it likes, and fails sometimes; its files are written as delphi/__main__.py does."""
    import orjson

    code = a_code()
    export_delphi(recorded(tmp_path, code), tmp_path, hookpoint=HOOK, n_splits=2)
    lines = [{"latent": i, "explanation": f"about “{i}”"} for i in range(F)]
    export_delphi_explanations(lines, tmp_path, hookpoint=HOOK)
    rng = np.random.default_rng(0)

    class Client(delphi.client.Client):
        async def generate(self, prompt, **options):
            text = f"[{rng.integers(2)}, {rng.integers(2)}]"
            return delphi.client.Response("no" if rng.random() < 0.2 else text)

    scorer = delphi.scorers.DetectionScorer(Client("none"), n_examples_shown=2)
    scores = tmp_path / "scores" / "detection"
    scores.mkdir(parents=True)
    for one in dataset(delphi, tmp_path):
        loaded = asyncio.run(delphi.explainers.explanation_loader(one, str(tmp_path / "explanations")))
        one.explanation = loaded.explanation
        assert one.explanation == lines[one.latent.latent_index]["explanation"]
        result = asyncio.run(scorer(one))
        (scores / f"{one.latent}.txt").write_bytes(orjson.dumps(result.score))
    log = delphi.result_analysis
    frame, counts = log.load_data(tmp_path / "scores", [HOOK])
    assert torch.equal(counts[HOOK], (code > 0).sum((0, 1)))
    found = {one["latent"]: one["scores"] for one in read_delphi_explanations(tmp_path)}
    assert sorted(found) == list(range(F)) and found[DEAD] == {}
    n_failed = 0
    for latent, mine in frame.groupby("latent_idx"):
        want = log.compute_classification_metrics(log.compute_confusion(mine))
        n_failed += len(mine) - want["total_examples"]
        if not want["total_examples"]:  # its formula would say 0
            assert found[latent] == {}
            continue
        assert found[latent]["detection"] == pytest.approx(want["accuracy"], abs=1e-12)
        assert found[latent]["detection_f1"] == pytest.approx(want["f1_score"], abs=1e-12)
    assert n_failed and len({one.get("detection") for one in found.values()}) > 3
