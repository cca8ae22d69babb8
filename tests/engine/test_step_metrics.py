"""What a step says of itself, counted by hand, and what it does where only a part of the loss is not finite."""

import pytest
import torch

import saefast

WAYS = [("topk", False), ("batch_topk", False), ("matryoshka", False), ("relu", False), ("relu", True)]


def trainer_of(activation, dense, d_sae=8, **options):
    """Latents are the axes and their opposites: x >= 0 has as many active latents as entries that are not 0."""
    k = {} if activation == "relu" else {"k": 3}
    groups = {"group_sizes": (4, 8)} if activation == "matryoshka" else {}
    sae = saefast.SAE(saefast.SAEConfig(4, d_sae, activation, **k, **groups))
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    sae.W_enc.data.copy_(0.5 * axes)
    sae.W_dec.data.copy_(axes)
    fixed = {"total_tokens": 100, "batch_size": 4, "lr": 0.1, "warmup_fraction": 0.0, "decay_fraction": 0.0}
    fixed |= {"normalize_input": False, "auxk_alpha": 0.0}
    trainer = saefast.Trainer(sae, saefast.TrainConfig(**fixed | options))
    trainer.state.dense = dense
    return trainer


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("activation,dense", WAYS)
@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_metrics_of_a_few_rows(activation, dense, n_rows, backend):
    if saefast.backend.unavailable(backend):
        pytest.skip(saefast.backend.unavailable(backend))
    x = torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]])[:n_rows]
    trainer = trainer_of(activation, dense, loss="mse", dead_feature_threshold=10, backend=backend)
    trainer.state.num_tokens_since_fired[:5] = torch.tensor([9, 10, 11, 10, 10])
    metrics = trainer.step(x)
    entries, squares = int((x > 0).sum()), float(x.square().sum())
    nested = 2 if activation == "matryoshka" else 1  # all of it is in the first prefix already
    assert float(metrics.l0) == pytest.approx(entries / n_rows)
    assert float(metrics.loss) == pytest.approx(nested * squares / 4 / n_rows)  # each entry is half of it
    variance = (x - x.mean(dim=0)).square().sum()
    if variance > 0:
        assert float(metrics.fvu) == pytest.approx(squares / 4 / float(variance))
    assert float(metrics.dead_frac) == pytest.approx(4 / 8)
    assert float(metrics.penalty) == float(metrics.auxk_loss) == 0
    assert trainer.state.fired.tolist() == [*(x > 0).sum(dim=0).tolist(), 0, 0, 0, 0]
    was = torch.tensor([9, 10, 11, 10, 10, 0, 0, 0]) + n_rows
    fired = torch.cat([(x > 0).any(dim=0), torch.zeros(4, dtype=torch.bool)])
    assert trainer.state.num_tokens_since_fired.tolist() == torch.where(fired, 0, was).tolist()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("norm_weighted", [False, True])
def test_a_penalty_that_overflows_changes_no_weight(dense, norm_weighted):
    """Though the reconstruction and its gradient are finite."""
    options = {"penalty": "l1", "sparsity_coefficient": 1e308, "sparsity_warmup_fraction": 0.0}
    options |= {"norm_weighted": True, "unit_norm": False} if norm_weighted else {}
    trainer = trainer_of("relu", dense, backend="reference", **options)
    trainer.input_scale = trainer.output_scale = 1.0
    before = [param.clone() for param in trainer.sae.params]
    metrics = trainer.step(torch.full((4, 4), 9.0) + torch.eye(4), checked=True)
    assert metrics.penalty == metrics.loss == torch.inf and metrics.fvu.isfinite()
    for was, now in zip(before, trainer.sae.params):
        assert torch.equal(was, now)


@pytest.mark.parametrize("activation", ["batch_topk", "matryoshka"])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_threshold_of_batch_topk_follows_the_smallest_activations(activation, backend):
    """The first batch sets it; the second has 10/11 of it, the third 10/12: a mean of the latest tenth."""
    if saefast.backend.unavailable(backend):
        pytest.skip(saefast.backend.unavailable(backend))
    trainer, want = trainer_of(activation, False, lr=1e-30, backend=backend), 0.0
    for n, smallest in enumerate((0.5, 2.0, 1.0), 1):
        trainer.step(
            torch.tensor([[9.0, 0, 8, 7], [0, 7, 6, 2 * smallest]])
        )  # an activation is half of an entry
        want += 10 / (9 + n) * (smallest - want)
        assert float(trainer.state.extra["threshold"].value) == pytest.approx(want, rel=1e-5)
        assert int(trainer.state.counter) == trainer.state.step == n


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("activation,dense", WAYS)
def test_a_loss_that_is_not_finite_changes_no_weight(activation, dense, bad):
    """Also where nothing but the loss tells: the square of 1e30 is Inf, all else is finite, without a variance."""
    trainer = trainer_of(activation, dense, loss="mse", backend="reference")
    trainer.input_scale = trainer.output_scale = 1.0
    before = [param.clone() for param in trainer.sae.params]
    x = torch.rand(4, 4)
    x[1, 2] = bad
    metrics = trainer.step(x, checked=True)
    assert not metrics.loss.isfinite()
    for was, now in zip(before, trainer.sae.params):
        assert torch.equal(was, now)
