"""sparsify's own code on our encoder and decoder, and what our trainer leaves to it."""

import logging
import sys
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from saefast.adapters import sparsify as ours
from saefast.adapters import sparsify_ops
from saefast.adapters.sparsify_ops import PreActs, decoder_impl, fused_encoder
from saefast.errors import InputError
from tests.peers.sparsify_runs import (
    SMALL,
    Data,
    Model,
    SparseCoderConfig,
    assert_same,
    make,
    narrow,
    run,
    sparse_coder,
    stock,
)

DEAD = torch.arange(301) % 3 == 0


@pytest.fixture(scope="module")
def rows(real_rows):
    return narrow(real_rows)


@pytest.fixture
def reads(monkeypatch):
    """Grows by one where pre-activations are read."""
    found, computed = [], PreActs.computed
    monkeypatch.setattr(PreActs, "computed", lambda self: found.append(1) or computed(self))
    return found


def coder(rows, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = sparse_coder.SparseCoder(rows.shape[1], SparseCoderConfig(**SMALL | options))
        made.b_dec.data += rows.mean(dim=0)
        made.W_dec.data += 0.01 * torch.randn(made.W_dec.shape)
    return made


@pytest.mark.parametrize("dead_mask", [None, DEAD], ids=["", "dead"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transcode": True, "skip_connection": True},
        {"multi_topk": True},
        {"activation": "groupmax", "num_latents": 301, "k": 7},
    ],
    ids=["topk", "transcode", "multi_topk", "groupmax"],
)
def test_outputs_and_gradients_are_those_of_sparsify(options, dead_mask, rows, reads):
    x, y = rows[:300].clone().requires_grad_(), rows[300:600] if options.get("transcode") else None
    found = []
    for patched in (False, True):
        made = coder(rows, **options)
        undo = ours.patch() if patched else lambda: None
        out = made(x, y, dead_mask=dead_mask)
        undo()
        loss = out.fvu + out.auxk_loss / 4 + out.multi_topk_fvu / 8 + out.sae_out.sin().sum() / 1e4
        grads = torch.autograd.grad(loss, [x, *(p for p in made.parameters())])
        found.append((out, grads))
    (want, grads), (got, ours_grads) = found
    for name, value in want._asdict().items():
        if name == "latent_indices":
            assert torch.equal(got.latent_indices.sort().values, value.sort().values)
            assert got.latent_indices.dtype == torch.int64
        elif name == "latent_acts":
            assert_close(got.latent_acts.sort().values, value.sort().values, rtol=1e-5, atol=1e-5)
        else:
            assert_close(getattr(got, name), value, rtol=1e-5, atol=1e-5)
    for want_grad, grad in zip(grads, ours_grads):
        assert (grad - want_grad).norm() <= 1e-5 * want_grad.norm()
    needed = dead_mask is not None or "multi_topk" in options
    assert bool(reads) == (needed and options.get("activation") != "groupmax")


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_the_stock_trainer_trains_the_same(optimizer, rows, tmp_path):
    """With AuxK as it is in sparsify: its gradient does not reach the encoder."""
    options = {"optimizer": optimizer, "auxk_alpha": 1 / 8, "dead_feature_threshold": 300}
    want = run(stock.Trainer, rows, tmp_path, **options)
    with ours.patched():
        got = run(stock.Trainer, rows, tmp_path, **options)
    assert want.curve("auxk/lookup").any()
    assert_same(want, got, weights=1e-4)


def test_any_leading_shape_and_inference(rows):
    """By size, where sparsify leaves the order open; two that are within rounding of each other may change places."""
    made, x = coder(rows), rows[:24].view(2, 3, 4, 96)
    want = made.encode(x)
    with ours.patched(), torch.inference_mode():
        got = made.encode(x)
        by_size = want.top_acts.sort(-1, descending=True).values
        for acts in (got.top_acts, want.pre_acts.gather(-1, got.top_indices)):
            assert_close(acts, by_size.detach(), rtol=1e-5, atol=1e-4)
        assert (got.top_indices.sort(-1).values.diff() > 0).all(), "each once"
        assert_close(got.pre_acts + 0, want.pre_acts.detach(), rtol=1e-5, atol=1e-4)
        assert got.top_acts.shape == (2, 3, 4, 9)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16(how, rows, monkeypatch):
    """To bf16's precision, in the dtypes of sparsify."""
    found, products = [], []
    encode = sparsify_ops.encode_topk
    watched = lambda *args: products.append(args[1].dtype) or encode(*args)
    monkeypatch.setattr(sparsify_ops, "encode_topk", watched)
    for patched in (False, True):
        made = coder(rows)
        undo = ours.patch() if patched else lambda: None
        if how == "weights":
            made.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            out = made(rows[:300].to(made.dtype))
            read = made.encode(rows[:5].to(made.dtype)).pre_acts.dtype
        undo()
        out.fvu.backward()
        found.append((out, [p.grad for p in made.parameters()], read))
    (want, grads, dtype), (got, ours_grads, ours_dtype) = found
    assert ours_dtype == dtype == torch.bfloat16 and set(products) == {torch.bfloat16}
    assert_close(got.fvu, want.fvu, rtol=0.02, atol=0)
    for a, b in zip(grads, ours_grads):
        assert a.dtype == b.dtype and (a - b).norm() <= 0.1 * a.norm()


def test_pre_acts_are_a_tensor_that_is_computed_once(rows, reads, monkeypatch):
    made = coder(rows)
    want = ((rows[:9] - made.b_dec) @ made.encoder.weight.T + made.encoder.bias).relu().detach()
    with ours.patched():
        got = made.encode(rows[:9]).pre_acts
    assert isinstance(got, torch.Tensor) and not reads
    for value in (got.numpy(), got.clone(), torch.stack([got])[0], got[:], got.to(torch.float64)):
        assert_close(torch.as_tensor(value).float(), want, rtol=1e-5, atol=1e-5)
    assert got.shape == (9, 301) and len(got) == 9 and not got.requires_grad
    got.zero_()
    assert not got.any()


def test_pre_acts_of_parameters_that_have_changed_are_refused(rows):
    made = coder(rows)
    with ours.patched():
        out = made.encode(rows[:9])
    with torch.no_grad():
        made.encoder.weight.mul_(2)
    with pytest.raises(InputError, match="pre_acts: expected to be read before the parameters change"):
        out.pre_acts.sum()


def test_compiles_without_a_break(rows):
    made = coder(rows)
    want = fused_encoder(rows[:9], made.encoder.weight, made.encoder.bias, 9, "topk")
    compiled = torch.compile(fused_encoder, backend="eager", fullgraph=True)
    got = compiled(rows[:9], made.encoder.weight, made.encoder.bias, 9, "topk")
    for a, b in zip(want, got):
        assert_close(a + 0, b)


def test_patches_end():
    before = sparse_coder.fused_encoder, sparse_coder.decoder_impl
    with pytest.raises(ZeroDivisionError), ours.patched():
        assert (sparse_coder.fused_encoder, sparse_coder.decoder_impl) == (fused_encoder, decoder_impl)
        with ours.patched():
            pass
        assert sparse_coder.fused_encoder is fused_encoder
        1 / 0  # noqa: B018
    assert (sparse_coder.fused_encoder, sparse_coder.decoder_impl) == before


GROUPMAX = {"activation": "groupmax", "num_latents": 301, "k": 7}
LEFT_TO_SPARSIFY = {
    "ce": ({"loss_fn": "ce"}, "loss_fn = 'ce' trains through the language model"),
    "kl": ({"loss_fn": "kl"}, "loss_fn = 'kl' trains through the language model"),
    "ce transcode": ({"loss_fn": "ce", "transcode": True, "hookpoints": ["mlp"]}, "loss_fn = 'ce'"),
    "skip": ({"skip_connection": True}, "skip_connection without transcode"),
    "groupmax": (GROUPMAX | {"multi_topk": True}, "multi_topk with activation = 'groupmax'"),
}


@pytest.mark.parametrize("case", LEFT_TO_SPARSIFY)
def test_left_to_sparsify_with_a_warning(case, rows, tmp_path, caplog, monkeypatch):
    options, reason = LEFT_TO_SPARSIFY[case]
    want, calls = run(stock.Trainer, rows, tmp_path, **options), []
    monkeypatch.setattr(sparsify_ops, "decoder_impl", lambda *args: calls.append(1) or decoder_impl(*args))
    with caplog.at_level(logging.WARNING, "saefast"):
        got = run(ours.Trainer, rows, tmp_path, **options)
    assert [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert calls and sparse_coder.fused_encoder is not fused_encoder
    assert_same(want, got, weights=1e-4, nudged=partial(run, stock.Trainer, rows, tmp_path, **options))


def test_what_else_is_left_to_sparsify(rows, tmp_path, monkeypatch):
    trainer = make(ours.Trainer, rows, tmp_path)
    assert ours.not_ours(trainer) is None
    trainer.saes["lookup"].bfloat16()
    assert ours.not_ours(trainer) == "parameters of torch.bfloat16, not torch.float32"
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert ours.not_ours(trainer) == "torch.distributed is in use"


def test_command_line(rows, tmp_path, monkeypatch):
    import sparsify.__main__ as cli

    batches = [torch.arange(257) + i for i in range(5)]
    monkeypatch.setattr(cli, "load_artifacts", lambda args, rank: (Model(rows), Data(batches)))
    monkeypatch.setattr(cli, "Trainer", cli.Trainer)  # put back afterwards
    words = "x model data --k 9 --num_latents 301 --batch_size 1 --hookpoints lookup --log_to_wandb False --lr 1e-3"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--save_dir", str(tmp_path)])
    made = []
    monkeypatch.setattr(ours, "lent", lambda *args, lent=ours.lent: made.append(args[1]) or lent(*args))
    ours.main()
    assert made == ["lookup"] and (tmp_path / "unnamed" / "lookup" / "sae.safetensors").exists()
