"""`benchmarks/activations/pipeline.py`: it runs at a toy size, and its checks notice fits that went another way."""

import pytest
import torch

from benchmarks.activations import pipeline
from benchmarks.activations.pipeline_fits import Fit, check_alike

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")


def test_a_toy_runs_and_shares_add_up() -> None:
    found = pipeline.main(["--smoke"])
    for part in ("shards", "model"):
        for fit in found[part]["fits"].values():
            assert fit["tokens/s"][0] > 0
            assert 0 <= fit["share waiting"][0] <= 1
    assert {"reading shards again", "batches", "training"} <= found["shards"]["stages, tokens/s"].keys()
    assert {"language model", "writing shards", "training"} <= found["model"]["stages, tokens/s"].keys()


def test_waiting_is_what_passes_inside_next() -> None:
    fit = Fit(iter([torch.zeros(2)] * 3), lambda x: x.sum())
    with pytest.MonkeyPatch.context() as patch:  # every call takes as many seconds as its name is long
        patch.setattr(
            "benchmarks.activations.pipeline_fits.seconds_of", lambda call: (call(), len(call.__name__))[1]
        )
        fit.run(steps=2, warm=1)
    assert len(fit.fvus) == 3
    assert fit.waiting == [1e3 * len("next_batch")]
    assert fit.total == [1e3 * len("next_batch" + "train")]


def test_another_loss_is_refused() -> None:
    def fit(*fvus: float) -> Fit:
        made = Fit(iter(()), lambda x: x)
        made.fvus = [torch.tensor(fvu) for fvu in fvus]
        return made

    check_alike({"in memory": fit(0.9, 0.8, 0.7), "from shards": fit(0.9, 0.8), "plain": fit(0.90001, 0.8)})
    with pytest.raises(AssertionError, match="from shards"):
        check_alike({"in memory": fit(0.9, 0.8), "from shards": fit(0.9, 0.80001)})
    with pytest.raises(AssertionError):
        check_alike({"in memory": fit(0.9, 0.8), "plain": fit(0.9, 0.81)})
