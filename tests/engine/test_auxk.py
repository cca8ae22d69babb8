"""AuxK's parts by hand: how many latents are counted as dead, which they are, and whose activations are taken."""

import pytest
import torch

import saefast
from saefast.engine.auxk import can_be_dead, capacity, find_dead, largest, rounded
from tests.helpers.architecture_cases import CASES, gradients, oracle, set_up

SILENT = torch.tensor([5, 20, 3, 10, 40, 9])  # tokens since each was active


@pytest.mark.parametrize("ahead,want", [(0, 3), (1, 4), (4, 4), (5, 5), (7, 6), (10, 6)])
def test_room_is_made_for_what_can_be_dead_by_then(ahead, want):
    assert capacity(SILENT, threshold=10, tokens_ahead=ahead) == want


@pytest.mark.parametrize(
    "n_dead,want",
    [(0, 0), (1, 128), (128, 128), (129, 256), (256, 256), (257, 512), (512, 512), (513, 1000), (1000, 1000)],
)
def test_a_few_capacities_do_for_all(n_dead, want):
    """128 times a power of two, and no more than there are latents."""
    assert rounded(n_dead, 1000) == want


@pytest.mark.parametrize(
    "room,latents,slots",
    [
        (2, [1, 3], [-1, 0, -1, 1, -1, -1]),  # the last has no place
        (3, [1, 3, 4], [-1, 0, -1, 1, 2, -1]),
        (6, [1, 3, 4, 0, 0, 0], [-1, 0, -1, 1, 2, -1]),  # three places stay free
    ],
)
def test_the_dead_in_their_order(room, latents, slots):
    found = find_dead(SILENT, threshold=10, capacity=room)
    assert found.latents.tolist() == latents and found.latents.dtype == torch.int64
    assert found.slots.tolist() == slots and found.slots.dtype == torch.int32
    assert int(found.number) == min(room, 3)


def test_nothing_dead():
    found = find_dead(SILENT, threshold=41, capacity=2)
    assert found.latents.tolist() == [0, 0] and found.slots.tolist() == [-1] * 6 and int(found.number) == 0


@pytest.mark.parametrize(
    "k,count,want",
    [
        (2, 4, [[0, 1, 0, 1], [1, 0, 0, 1]]),
        (2, 3, [[0, 1, 1, 0], [1, 1, 0, 0]]),  # the last column does not count
        (2, 1, [[1, 0, 0, 0], [1, 0, 0, 0]]),
        (9, 3, [[1, 1, 1, 0], [1, 1, 1, 0]]),
        (2, 0, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_the_largest_of_those_that_count(k, count, want):
    scores = torch.tensor([[-1.0, 4.0, 3.0, 9.0], [-1.0, -2.0, -3.0, 0.5]])
    assert largest(scores, k, torch.tensor(count)).tolist() == want


def trainer_of(activation, dense, **options):
    """Latents are the axes; all but the first have a bias, so that there is a residual."""
    k = {"k": 1} if activation == "topk" else {}
    sae = saefast.SAE(saefast.SAEConfig(4, 4, activation, **k))
    sae.W_enc.data.copy_(torch.eye(4))
    sae.W_dec.data.copy_(torch.eye(4))
    sae.b_enc.data.copy_(torch.tensor([-0.5, 0.25, 0.25, 0.25]))
    fixed = {"total_tokens": 100, "batch_size": 6, "k_aux": 1, "dead_feature_threshold": 50}
    fixed |= {"backend": "reference", "normalize_input": False}
    trainer = saefast.Trainer(sae, saefast.TrainConfig(**fixed | options))
    trainer.state.dense = dense
    return trainer


@pytest.mark.parametrize("activation,dense", [("topk", False), ("relu", False), ("relu", True)])
@pytest.mark.parametrize("n_active", [0, 1, 2])
@pytest.mark.parametrize("counted", [False, True])
def test_a_latent_that_is_active_in_one_token_of_the_batch_takes_no_part(
    activation, dense, n_active, counted
):
    """With `count_before_auxk`; without it, AuxK has not seen the batch yet."""
    first, second = torch.eye(4)[:1], torch.eye(4)[1:2]
    x = torch.cat([first.repeat(n_active, 1), second.repeat(6 - n_active, 1)])
    trainer = trainer_of(activation, dense, count_before_auxk=counted)
    trainer.state.num_tokens_since_fired[0] = 60
    metrics = trainer.step(x)
    assert int(trainer.state.fired[0]) == n_active
    assert (float(metrics.auxk_loss) > 0) == (n_active == 0 or not counted)


@pytest.mark.parametrize("dense", [False, True])
def test_what_is_active_in_the_batch_is_not_dead_at_any_threshold(dense):
    trainer = trainer_of("relu", dense, count_before_auxk=True, dead_feature_threshold=1)
    trainer.state.num_tokens_since_fired.fill_(60)
    assert float(trainer.step(torch.ones(6, 4) + torch.rand(6, 1)).auxk_loss) == 0
    assert trainer.state.dead_capacity == 4 and (trainer.state.fired == 6).all()


def test_room_for_the_dead_without_any_changes_no_gradient():
    """Also where the reconstruction learns from AuxK's loss: it must not get that of an e_hat that is not there."""
    x, after = torch.eye(4)[1:3].repeat(3, 1) + 0.1 * torch.rand(6, 4), []
    fixed = {"lr": 0.1, "warmup_fraction": 0.0, "loss": "mse"}
    kept = {"auxk_detached": False, "auxk_scale": "loss", "count_before_auxk": True}
    for options in (kept, {"auxk_alpha": 0.0, "k_aux": None}):
        trainer = trainer_of("topk", False, **fixed | options)
        trainer.state.num_tokens_since_fired[2] = 49  # dead one token later, if it were silent
        metrics = trainer.step(x)
        assert trainer.state.dead_capacity == (options is kept)
        assert float(metrics.auxk_loss) == 0 < metrics.loss
        after.append((metrics.loss, metrics.grad_norm, *trainer.sae.params))
    for with_room, without in zip(*after):
        assert torch.equal(with_room, without)


@pytest.mark.parametrize("name", [name for name in CASES if "auxk" in name])
@pytest.mark.parametrize("n_dead", [1, 2])
def test_gradients_with_few_dead_latents_equal_autograd_of_the_formula(name, n_dead):
    setup = set_up(CASES[name])
    silent = setup.trainer.state.num_tokens_since_fired
    silent.zero_()
    silent[[0, 3][:n_dead]] = 60
    loss, _, want = oracle(setup)
    metrics, got = gradients(setup)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-9) and metrics.auxk_loss > 0
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-7, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


def on_gpu(**options) -> saefast.Trainer:
    """One that counts as on a GPU: once in an interval, for the next."""
    trainer = trainer_of("topk", False, **options)
    trainer.on_gpu = True
    return trainer


def counted_at(trainer: saefast.Trainer, silent: int, step: int) -> int:
    """Room in a batch of 4 tokens after `silent` of its latents were silent for 1000 tokens."""
    trainer.state.num_tokens_since_fired[:] = 0
    trainer.state.num_tokens_since_fired[:silent] = 1000
    trainer.state.step = step
    trainer.plan(4)
    return trainer.state.dead_capacity


def test_on_a_gpu_an_interval_has_the_count_that_was_asked_for_before(monkeypatch):
    """The first one waits for its own; asked twice in a step it changes nothing; a checkpoint keeps what was asked."""
    monkeypatch.setattr("saefast.engine.auxk.rounded", lambda n, d_sae: n)
    trainer, again = (on_gpu(dead_feature_threshold=1000) for _ in range(2))
    assert counted_at(trainer, 1, 0) == 1
    for step, silent, want in ((0, 4, 1), (5, 3, 1), (16, 2, 1), (32, 0, 2), (48, 4, 0), (64, 0, 4)):
        assert counted_at(trainer, silent, step) == want, step
    again.load_tensors(trainer.tensors())
    again.state.dead_ahead = trainer.state.dead_ahead
    assert trainer.state.dead_ahead == 0
    assert counted_at(trainer, 3, 80) == counted_at(again, 3, 80) == 0
    assert counted_at(trainer, 0, 96) == counted_at(again, 0, 96) == 3


@pytest.mark.parametrize("counted", [False, True])
def test_the_count_for_the_next_interval_is_never_too_small(counted):
    """A latent that is silent from now on is counted before the interval in which it becomes dead."""
    trainer = on_gpu(dead_feature_threshold=1000, count_before_auxk=counted)
    silent_for, dead_at = trainer.state.num_tokens_since_fired, {}
    for step in range(320):
        silent_for[:] = torch.tensor([0, 4 * step, 4 * step + 37, 2 * step])
        trainer.state.step = step
        trainer.plan(4)
        n_dead = int(can_be_dead(silent_for, 1000, 4 * counted))
        dead_at.setdefault(n_dead, step)
        assert trainer.state.dead_capacity >= n_dead
    assert dead_at.keys() == {0, 1, 2}


def test_a_small_batch_makes_room_for_those_that_follow():
    """On a GPU the count is for up to two intervals of whole batches, 6 tokens here, whatever the first one has."""
    trainer = on_gpu(dead_feature_threshold=1000)
    trainer.state.num_tokens_since_fired[:] = torch.tensor(
        [0, 1000 - 15 * 6 - 1, 1000 - 15 * 6, 1000 - 31 * 6]
    )
    trainer.plan(1)
    assert trainer.state.dead_capacity == 4 and int(trainer._dead_ahead) == 3  # 1, rounded to all there are
    trainer.state.step = 16
    trainer.plan(1)
    assert trainer.state.dead_capacity == 4
