"""benchmarks/parity*.py: the order of the rows, the score, the verdict. The runs need the peers and take an hour."""

import pytest
import torch

from benchmarks.peers.parity import compare
from benchmarks.peers.parity_common import D_SAE, batch_indices, scale_of, score


def test_every_row_comes_once_before_any_comes_twice() -> None:
    seen = torch.cat(list(batch_indices(0, 1000, 8)))
    assert seen[:1000].unique().numel() == 1000 and seen[1000:2000].unique().numel() == 1000
    assert not torch.equal(seen[:1000], seen[1000:2000])
    again, other = (torch.cat(list(batch_indices(seed, 1000, 8))) for seed in (0, 1))
    assert torch.equal(seen, again) and not torch.equal(seen, other)


def test_score_is_of_all_rows_at_once() -> None:
    x = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)) + 1
    W = torch.randn(D_SAE, 6, generator=torch.Generator().manual_seed(1)) / 10

    def encode(rows: torch.Tensor) -> torch.Tensor:
        return (rows @ W.T - 0.3).relu()

    found = score(encode, lambda acts: acts @ W, x)
    acts, wide = encode(x), x.double()
    error = (acts @ W).double() - wide
    assert found["fvu"] == pytest.approx(
        float(error.square().sum() / (wide - wide.mean(dim=0)).square().sum()), rel=1e-5
    )
    assert found["l0"] == pytest.approx(float((acts > 0).sum() / 5000))
    assert found["dead"] == pytest.approx(float((~(acts > 0).any(dim=0)).double().mean()))


def test_scales() -> None:
    x = torch.randn(300, 9, generator=torch.Generator().manual_seed(0)) * 7
    assert float((x * scale_of("rms", x)).square().sum(dim=1).mean()) == pytest.approx(1, rel=1e-5)
    assert float((x * scale_of("sqrt_d", x)).norm(dim=1).mean()) == pytest.approx(3, rel=1e-5)
    assert scale_of("none", x) == 1


def test_verdicts() -> None:
    def runs(*fvu: float) -> list[dict[str, float]]:
        return [{"fvu": value, "l0": 32.0, "dead": 0.0} for value in fvu]

    assert compare(runs(0.2, 0.2), runs(0.2019, 0.2019))["fvu"]["verdict"] == "within 1 %"
    assert compare(runs(0.2, 0.21), runs(0.21, 0.21))["fvu"]["verdict"] == "within the seeds"
    assert compare(runs(0.2, 0.201), runs(0.19, 0.19))["fvu"]["verdict"] == "OFF"
