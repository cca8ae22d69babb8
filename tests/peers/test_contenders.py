"""The contenders of benchmarks/: everybody begins with the same FVU, and is judged by what it has really learnt."""

import pytest
import torch

from benchmarks.peers import contenders
from benchmarks.peers.contenders import CONTENDERS, NEVER, fvu_of, make, missing
from benchmarks.peers.runs import Recipe
from saefast import SAE, SAEConfig, reference

B, D, F, K = 96, 24, 160, 5


def rows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator) @ torch.randn(D, D, generator=generator) / D**0.5 + 2


def fresh():
    sae = SAE(SAEConfig(d_in=D, d_sae=F, k=K), 3)
    sae.W_enc.data = sae.W_enc.data * 0.7  # not the decoder's transpose
    sae.b_enc.data = torch.randn(F, generator=torch.Generator().manual_seed(4)) / 20
    sae.b_dec.data = rows(4000).mean(dim=0)
    return sae


@pytest.fixture(params=CONTENDERS)
def name(request):
    if why := missing(request.param):
        pytest.skip(why)
    return request.param


def fvu(sae, x):
    return float(reference.fvu(sae.decode(*sae.encode(x)), x))


def test_begins_with_the_weights_given(name):
    sae, x = fresh(), rows(B, 1)
    run = make(name, sae, Recipe(batch_size=B))
    expected = fvu(sae, x)
    assert fvu(run.sae(), x) == pytest.approx(expected, rel=1e-5)
    assert fvu_of(name, run.step(x), x) == pytest.approx(expected, rel=1e-5)


def test_what_is_judged_is_what_was_trained(name):
    """The FVU of the converted SAE is the loss that the trainer reports next."""
    run = make(name, fresh(), Recipe(lr=3e-3, batch_size=B, steps=40, sample=rows(B, 1)))
    losses = []
    for i in range(30):
        x = rows(B, 10 + i)
        judged = fvu(run.sae(), x)
        losses.append(fvu_of(name, run.step(x), x))
        if (
            name != "sparsify signum" or i == 0
        ):  # whose averages are judged, not the weights that it trains at
            assert judged == pytest.approx(losses[-1], rel=1e-4), i
    assert losses[-1] < losses[0]


def test_learns_at_the_rate_of_the_recipe(name):
    """Up over 5 % of the steps, down to next to nothing at the end: so little changes in the last step."""
    if name == "sparsify signum":
        pytest.skip("without a schedule")
    steps = 40
    run = make(name, fresh(), Recipe(lr=1e-2, batch_size=B, steps=steps, sample=rows(B, 1)))
    moved = []
    for i in range(steps):
        before = run.sae().W_enc.data
        run.step(rows(B, 10 + i))
        moved.append(float((run.sae().W_enc.data - before).norm()))
    assert max(moved[-2:]) < 0.15 * max(moved[2:10])
    assert moved[0] < 1.2 * max(moved[1:4])


def test_everybody_is_listed():
    assert {"openai/sparse_autoencoder", "flexsae"} <= set(NEVER)
    packages = {package for package, _ in CONTENDERS.values()}
    assert packages == {None, "sparsify", "dictionary_learning", "sae_lens", "llamascopium", "overcomplete"}


def test_missing_says_so(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda package: None)
    assert [name for name in CONTENDERS if missing(name) == "not installed"] == [
        name for name, (package, _) in CONTENDERS.items() if package
    ]
