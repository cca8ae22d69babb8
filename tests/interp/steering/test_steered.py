"""Edits of latents in a model, against whole reconstructions put in by plain hooks."""

from functools import partial

import pytest
import torch

from saefast import InputError
from saefast.activations.hooks import HookPoint
from saefast.interp.steering import Edit, splice_check, steered
from tests.helpers import tiny_models
from tests.helpers.effects_cases import HIDDEN, HOOKS, language_model
from tests.helpers.spliced import captured, logits_with, perfect
from tests.helpers.steering_cases import EDITS, edited, logits_of, made
from tests.helpers.tiny_models import tokens

KINDS = {
    "topk": {},
    "topk-by-norm": {"scale_by_norm": True},
    "batch_topk": {"activation": "batch_topk"},
    "matryoshka": {"activation": "matryoshka"},
    "group_max": {"activation": "group_max", "k": 5},
    "relu": {"activation": "relu", "k": None},
    "jumprelu": {"activation": "jumprelu", "k": None},
    "gated": {"activation": "gated", "k": None},
    "layer_norm": {"input_norm": "layer_norm"},
    "constant_norm": {"input_norm": "constant_norm"},
    "scale": {"input_norm": "scale", "scales": (0.5, 0.25)},
}


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_in_is_the_edited_reconstruction_and_the_old_error(kind):
    model, sae, ids = language_model("gpt2"), made(**KINDS[kind]), tokens(3, 9)
    found, clean = captured(model, [HOOKS["gpt2"]], input_ids=ids)
    x = found[HOOKS["gpt2"]]
    acts, indices = sae.encode(x.flatten(0, 1))
    most = int(torch.bincount(indices[acts > 0], minlength=40)[12:].argmax()) + 12
    edits = [*EDITS[:2], Edit(most, 2.5, "scale"), EDITS[3]]
    change = edited(sae, x.flatten(0, 1), edits)
    want = logits_with(model, {HOOKS["gpt2"]: x + change.view(x.shape)}, input_ids=ids)
    with steered(model, sae, HOOKS["gpt2"], edits):
        got = logits_of(model, ids)
    assert torch.allclose(got, want, atol=2e-4, rtol=1e-4) and (got - clean).abs().amax() > 0.1
    assert torch.equal(logits_of(model, ids), clean) and not hooks_of(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_hidden_neurons_are_edited_where_they_go_into_the_next_map(kind):
    model, ids = language_model(kind), tokens(2, 8)
    path, width = HIDDEN[kind]
    sae = made(width, activation="batch_topk")
    x = captured(model, [f"{path}:in"], input_ids=ids)[0][f"{path}:in"]
    new = x + edited(sae, x.flatten(0, 1)).view(x.shape)
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, args: (new,))
    want = logits_of(model, ids)
    handle.remove()
    with steered(model, sae, f"{path}:in", EDITS):
        got = logits_of(model, ids)
    assert torch.allclose(got, want, atol=2e-4, rtol=1e-4)


def test_a_transcoder_is_read_at_its_input_and_edited_at_its_output():
    model, ids, mlp = language_model("gpt2"), tokens(2, 8), "transformer.h.1.mlp"
    sae = made(d_out=32, pre_bias=False, skip=True)
    sae.W_skip.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    found, clean = captured(model, [f"{mlp}:in", mlp], input_ids=ids)
    y = found[mlp]
    change = edited(sae, found[f"{mlp}:in"].flatten(0, 1)).view(y.shape)
    want = logits_with(model, {mlp: y + change}, input_ids=ids)
    for hook in (f"{mlp}:in", (f"{mlp}:in", mlp)):
        with steered(model, sae, hook, EDITS):
            got = logits_of(model, ids)
        assert torch.allclose(got, want, atol=2e-4, rtol=1e-4) and (want - clean).abs().amax() > 0.1


def test_a_crosscoder_can_be_added_to_and_refuses_the_rest():
    model, ids = language_model("gpt2"), tokens(2, 8)
    paths = ["transformer.h.0", "transformer.h.2"]
    sae, edits = made(64, layers=2), [Edit(3, 2.0, "add")]
    row = 2 * sae.W_dec.detach()[3]
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, out, part=part: (
                out + part if torch.is_tensor(out) else (out[0] + part, *out[1:])
            )
        )
        for path, part in zip(paths, row.split(32), strict=True)
    ]
    want = logits_of(model, ids)
    for handle in handles:
        handle.remove()
    with steered(model, sae, paths, edits):
        assert torch.allclose(logits_of(model, ids), want, atol=2e-4)
    refused = pytest.raises(InputError, match="read at one place, or edits that add")
    with refused, steered(model, sae, paths, [Edit(3, 2.0)]):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_to_what_is_there_changes_no_bit_and_the_splice_only_its_rounding(kind):
    model, sae, ids = language_model("gpt2"), made(**KINDS[kind]), tokens(2, 9)
    clean = logits_of(model, ids)
    with steered(model, sae, HOOKS["gpt2"], [Edit(3, 1.0, "scale"), Edit(4, 0.0, "add")]):
        assert torch.equal(logits_of(model, ids), clean)
    one = ids[:1, :1]  # of one token, the value is known
    x = captured(model, [HOOKS["gpt2"]], input_ids=one)[0][HOOKS["gpt2"]][0]
    acts, indices = sae.encode(x)
    own = [Edit(int(i), float(a)) for a, i in zip(acts[0].tolist(), indices[0].tolist(), strict=True)]
    with steered(model, sae, HOOKS["gpt2"], own):
        assert torch.equal(logits_of(model, one), logits_of(model, one)) and own
        same = logits_of(model, one)
    assert torch.equal(same, logits_of(model, one))
    check = splice_check(sae, model, HOOKS["gpt2"], [ids, {"input_ids": ids}])
    assert check.n_tokens == 36 and check.relative <= check.worst < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_special_tokens_and_sinks_stay_as_they_are(side):
    model, sae, hook = language_model("llama"), made(), HOOKS["llama"]
    ids = tokens(2, 9)
    ids[1, 4] = 5
    mask = torch.ones_like(ids)
    mask[0, slice(0, 3) if side == "left" else slice(6, 9)] = 0
    x = captured(model, [hook], input_ids=ids, attention_mask=mask)[0][hook]
    norms = x.norm(dim=2)
    limit = float(norms[mask.bool()].sort().values[-2:].mean())  # one real row is above it
    stays = (mask == 0) | (ids == 5) | (norms > limit)
    change = edited(sae, x.flatten(0, 1)).view(x.shape)
    assert int(((norms > limit) & (mask == 1)).sum()) == 1
    new = torch.where(stays[..., None], x, x + change)
    want = logits_with(model, {hook: new}, input_ids=ids, attention_mask=mask)
    seen = []
    with (
        steered(model, sae, hook, EDITS, max_norm=limit, drop_ids=[5]),
        HookPoint(model, hook).attached(seen.append),
    ):
        got = logits_of(model, ids, attention_mask=mask)
    assert torch.allclose(got[mask.bool()], want[mask.bool()], atol=2e-4, rtol=1e-4)
    assert torch.equal(seen[0][stays], x[stays]) and not torch.isclose(seen[0], x)[~stays].all(dim=1).any()


@pytest.mark.parametrize("at", ["all", "prompt", "generated"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "mamba"])
def test_kept_keys_and_values_give_the_same_logits(kind, at):
    """Greedy, with padding on the left: with `use_cache` a pass sees the new token only."""
    model = tiny_models.model("mamba") if kind == "mamba" else language_model(kind)
    hook = {"mamba": "backbone.layers.0"}.get(kind, HOOKS.get(kind))
    ids, mask = tokens(3, 6, seed=4), torch.ones(3, 6, dtype=torch.int64)
    if kind != "mamba":
        mask[0, :3] = 0
    edits = [edit._replace(at=at) for edit in EDITS]
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "eos_token_id": None}
    found = {}
    for use_cache in (True, False):
        length = None if use_cache else 6
        with steered(model, made(), hook, edits, drop_ids=[5], prompt_length=length):
            found[use_cache] = model.generate(
                ids,
                attention_mask=mask,
                use_cache=use_cache,
                return_dict_in_generate=True,
                pad_token_id=0,
                **options,
            )
    assert torch.equal(found[True].sequences, found[False].sequences)
    kept, again = (torch.stack(found[use].logits) for use in (True, False))
    assert torch.allclose(kept, again, atol=5e-4, rtol=1e-3)
    clean = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, pad_token_id=0, **options)
    same_first = torch.allclose(clean.logits[0], kept[0], atol=1e-4)
    assert same_first == (at == "generated")  # before anything is generated
    assert not torch.allclose(torch.stack(clean.logits)[:, :, :8], kept[:, :, :8], atol=1e-2)


def test_several_inside_of_each_other_and_all_hooks_go_whatever_happens():
    model, sae, hook, ids = language_model("gpt2"), made(), HOOKS["gpt2"], tokens(2, 6)
    first, second = [Edit(3, 4.0)], [Edit(7, -2.0, "add")]
    x = captured(model, [hook], input_ids=ids)[0][hook]
    new = x + edited(sae, x.flatten(0, 1), first).view(x.shape)
    new = new + edited(sae, new.flatten(0, 1), second).view(x.shape)
    want = logits_with(model, {hook: new}, input_ids=ids)
    with steered(model, sae, hook, first):
        with steered(model, sae, hook, second):
            assert torch.allclose(logits_of(model, ids), want, atol=2e-4)
        again = logits_of(model, ids)
    with steered(model, sae, hook, first):
        assert torch.equal(logits_of(model, ids), again)
    clean = logits_of(model, ids)
    with pytest.raises(KeyError), steered(model, sae, hook, first):
        with pytest.raises(IndexError):  # a pass that fails, and one after it
            model(ids + 1000)
        assert torch.equal(logits_of(model, ids), again)
        raise KeyError
    assert torch.equal(logits_of(model, ids), clean) and not hooks_of(model)


def test_what_is_captured_inside_is_steered():
    model, sae, hook, ids = language_model("gpt2"), made(), HOOKS["gpt2"], tokens(2, 6)
    x = captured(model, [hook], input_ids=ids)[0][hook]
    with steered(model, sae, hook, EDITS), torch.no_grad():
        got = HookPoint(model, hook).capture(ids)
    assert torch.allclose(got, x + edited(sae, x.flatten(0, 1)).view(x.shape), atol=1e-4)


def test_a_model_in_bf16_is_steered_in_the_precision_of_the_sae():
    ids = tokens(2, 6)
    model = tiny_models.KINDS["llama"]().eval().to(torch.bfloat16)
    sae, hook = made(), "model.layers.0"
    x = captured(model, [hook], input_ids=ids)[0][hook]
    new = (x.float() + edited(sae, x.float().flatten(0, 1)).view(x.shape)).bfloat16()
    want = logits_with(model, {hook: new}, input_ids=ids)
    with steered(model, sae, hook, EDITS):
        got = logits_of(model, ids)
    assert got.dtype == torch.bfloat16 and torch.allclose(got.float(), want.float(), atol=0.05)
    with steered(model, sae, hook, [Edit(3, 1.0, "scale")]):
        assert torch.equal(logits_of(model, ids), logits_of(model, ids))


def test_bad_input_is_refused_and_leaves_no_hooks():
    model, sae, ids = language_model("gpt2"), made(), tokens(2, 6)
    hook, one = HOOKS["gpt2"], [Edit(3, 1.0)]
    cases = [
        ({"edits": [Edit(40, 1.0)]}, "latent: expected 0 to 39, got 40"),
        ({"edits": [Edit(-1, 1.0)]}, "latent: expected 0 to 39, got -1"),
        ({"edits": [Edit(3, float("nan"))]}, "value: expected a finite number for latent 3, got nan"),
        ({"edits": [Edit(3, 1.0), Edit(3, 2.0, "add", "prompt")]}, "got two of 3"),
        ({"edits": [Edit(3, 1.0, "half")]}, "how: expected one of"),
        ({"edits": [Edit(3, 1.0, "set", "end")]}, "at: expected one of"),
        ({"hook": "transformer.h.9"}, "hook: expected a module path or path:in, got 'transformer.h.9'"),
        ({"sae": made(48)}, "hook: expected activations of width d_in = 48"),
        ({"prompt_length": 0}, "prompt_length: expected at least 1, got 0"),
        ({"directions": torch.zeros(2, 32)}, r"directions: expected \[1, 32\], got \[2, 32\]"),
    ]
    for given, message in cases:
        call = partial(steered, **({"model": model, "sae": sae, "hook": hook, "edits": one} | given))
        with pytest.raises(InputError, match=message), call():
            pass
    with steered(model, sae, hook, one):
        for _ in range(2):
            with pytest.raises(InputError, match="expected a pass of the whole model"):
                model.transformer(ids)
            logits_of(model, ids)
    with steered(model, sae, hook, [Edit(3, 1.0, "set", "prompt"), Edit(3, 2.0, "set", "generated")]):
        logits_of(model, ids)
    with steered(model, perfect(32), hook, []):
        assert not hooks_of(model)
    assert not hooks_of(model)
