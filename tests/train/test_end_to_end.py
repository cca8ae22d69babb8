"""Training end to end: the gradient through the model against fp64 autograd of the dense formula, and the loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from saefast import SAE, InputError, SAEConfig
from saefast.interp.splice import evaluate_in_model
from saefast.train.end_to_end import EndToEnd, EndToEndConfig
from tests.helpers import dense, tiny_lm

HOOK, DOWNSTREAM = "model.layers.1", ("model.layers.2.mlp", "model.norm")
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def tokens(n=3, length=9, seed=0):
    return torch.randint(2, 64, (n, length), generator=torch.Generator().manual_seed(seed))


DROP = tokens()[0, [2, 6]].tolist()


def make_sae(dtype=torch.float32, d_sae=70, k=5):
    """Not at its initial weights: nothing is 0, W_enc is not W_dec."""
    sae, generator = SAE(SAEConfig(d_in=32, d_sae=d_sae, k=k), seed=1), torch.Generator().manual_seed(2)
    sae.W_enc.data += 0.05 * torch.randn(d_sae, 32, generator=generator)
    sae.b_enc.data += 0.1 * torch.randn(d_sae, generator=generator)
    sae.b_dec.data += 0.1 * torch.randn(32, generator=generator)
    return sae.to(dtype)


def perfect():
    """relu(x) and relu(-x) along the axes: the reconstruction is x."""
    sae = SAE(SAEConfig(d_in=32, d_sae=64, k=32))
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    sae.W_dec.data.copy_(both)
    sae.W_enc.data.copy_(both)
    return sae


def oracle(params, batch, config, max_norm, k=5):
    """The loss in fp64 by plain hooks and dense formulas, and its gradients: (terms, gradients)."""
    model = tiny_lm.model().double().requires_grad_(False)
    params = [param.detach().double().clone().requires_grad_() for param in params]
    kept, places = [], {"model.layers.2.mlp": model.model.layers[2].mlp, "model.norm": model.model.norm}

    def run(spliced):
        seen, handles = {}, []
        for name in config.downstream:
            handles.append(
                places[name].register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
            )

        def hook(module, args, output):
            hidden = output if torch.is_tensor(output) else output[0]
            stays = (hidden.norm(dim=-1) > max_norm) | torch.isin(batch, torch.tensor(DROP))
            kept.append(hidden[~stays])
            x_hat = dense.forward(hidden.flatten(0, 1), *params, k).view_as(hidden)
            new = torch.where(stays[..., None], hidden, x_hat) if spliced else hidden
            return new if torch.is_tensor(output) else (new, *output[1:])

        handles.append(model.model.layers[1].register_forward_hook(hook))
        logits = model(batch).logits[:, :-1].flatten(0, 1)
        for handle in handles:
            handle.remove()
        return logits.log_softmax(dim=1), [seen[name].flatten(0, 1) for name in config.downstream]

    (clean, before), (spliced, after) = run(False), run(True)
    target = batch[:, 1:].flatten()
    terms = {
        "kl": (clean.exp() * (clean - spliced)).sum(dim=1).mean(),
        "ce": F.cross_entropy(spliced, target),
        "ce_clean": F.cross_entropy(clean, target),
        "fvu": dense.fvu(dense.forward(kept[0], *params, k), kept[0]),
    }
    distances = [((a - b).square().sum(1) / b.square().sum(1)).mean() for a, b in zip(after, before)]
    terms["downstream"] = torch.stack(distances).mean() if distances else torch.zeros(())
    loss = terms[config.loss] + config.mse_coefficient * terms["fvu"]
    loss = loss + config.downstream_coefficient * terms["downstream"]
    return {"loss": loss, **terms}, torch.autograd.grad(loss, params)


CONFIGS = {
    "kl": {},
    "ce": {"loss": "ce"},
    "kl and fvu": {"mse_coefficient": 0.7},
    "kl and downstream": {"downstream": DOWNSTREAM, "downstream_coefficient": 1.3},
    "all, in parts": {
        "loss": "ce",
        "mse_coefficient": 0.7,
        "downstream": DOWNSTREAM,
        "downstream_coefficient": 1.3,
        "contexts_at_once": 2,
    },
}


@pytest.mark.each_value
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_are_those_of_the_dense_formula_through_the_model(options, dtype):
    # a few rows are sinks at this ratio, and some tokens are special
    config, batch, sae = EndToEndConfig(**options, sink_ratio=1.3), tokens(), make_sae(dtype)
    trained = EndToEnd(sae, tiny_lm.model().to(dtype), HOOK, config, DROP)
    metrics = trained.gradients(batch)
    terms, grads = oracle(sae.params, batch, config, trained.max_norm)
    terms = {name: float(value.detach()) for name, value in terms.items()}
    rtol = 1e-9 if dtype == torch.float64 else 2e-4
    for name, value in terms.items():
        assert getattr(metrics, name) == pytest.approx(value, rel=rtol), name
    for name, want in zip(NAMES, grads):
        got = getattr(sae, name).grad
        assert (got - want).abs().max() <= rtol * want.abs().max(), name
        assert want.abs().max() > 1e-6


def test_some_rows_of_these_tests_are_sinks_and_some_special():
    trained = EndToEnd(make_sae(), tiny_lm.model(), HOOK, EndToEndConfig(sink_ratio=1.3), DROP)
    trained.gradients(tokens())
    norms = trained.point.capture(tokens()).norm(dim=-1)
    special = torch.isin(tokens(), torch.tensor(DROP))
    assert 0 < int((norms > trained.max_norm).sum()) < 9 and 0 < int(special.sum()) < 9
    assert trained.max_norm == pytest.approx(1.3 * float(norms.median()))


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_a_perfect_sae_loses_nothing(loss):
    trained = EndToEnd(perfect(), tiny_lm.model(), HOOK, EndToEndConfig(loss=loss, mse_coefficient=1.0))
    metrics = trained.gradients(tokens())
    assert abs(metrics.kl) < 1e-6 and metrics.fvu < 1e-12
    assert metrics.ce == pytest.approx(metrics.ce_clean, rel=1e-6)
    assert metrics.loss == pytest.approx(metrics.ce_clean if loss == "ce" else 0, rel=1e-6, abs=1e-6)


def test_the_figures_are_those_of_the_evaluation_in_the_model():
    sae, model, batch = make_sae(), tiny_lm.model(), tokens(4, 16)
    trained = EndToEnd(sae, model, HOOK, EndToEndConfig(sink_ratio=1.3))
    metrics = trained.gradients(batch)
    want = evaluate_in_model(sae, model, HOOK, [batch], trained.max_norm)
    for got, value in ((metrics.kl, want.kl), (metrics.ce, want.ce_sae), (metrics.ce_clean, want.ce)):
        assert got == pytest.approx(value, rel=1e-5)
    assert want.kl > 0.01


def test_steps_are_those_of_torchs_adam_on_the_oracles_gradients():
    sae, config = make_sae(torch.float64), EndToEndConfig(lr=3e-3, sink_ratio=None)
    params = [param.clone().requires_grad_() for param in sae.params]
    trained = EndToEnd(sae, tiny_lm.model().double(), HOOK, config, DROP)
    x = trained.point.capture(tokens(seed=0))[~torch.isin(tokens(seed=0), torch.tensor(DROP))]
    scale = math.sqrt(32 / float(x.square().sum(dim=1).mean()))  # a bias moves in the units of the data
    groups = [
        {"params": [params[0], params[2]], "lr": 3e-3, "eps": 6.25e-10},
        {"params": [params[1], params[3]], "lr": 3e-3 / scale, "eps": 6.25e-10 * scale},
    ]
    adam = torch.optim.Adam(groups)
    for seed in range(4):
        trained.step(tokens(seed=seed))
        _, grads = oracle(params, tokens(seed=seed), config, math.inf)
        for param, grad in zip(params, grads):
            param.grad = grad
        W_dec = params[2]
        W_dec.grad = W_dec.grad - (W_dec.grad * W_dec.data).sum(1, keepdim=True) * W_dec.data
        adam.step()
        W_dec.data /= W_dec.data.norm(dim=1, keepdim=True)
        for name, want in zip(NAMES, params):
            assert torch.allclose(getattr(sae, name), want, rtol=1e-8, atol=1e-10), (seed, name)
    assert abs(scale - 1) > 0.05 and trained.n_steps == 4


def test_fit_lowers_the_kl_and_leaves_the_model_alone():
    model, config = tiny_lm.model(), EndToEndConfig(lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sae = SAE(SAEConfig(d_in=32, d_sae=128, k=8))
    batches = [tokens(4, 16, seed=seed) for seed in range(4)]
    trained = EndToEnd(sae, model, HOOK, config)
    start = evaluate_in_model(sae, model, HOOK, batches).kl
    history = trained.fit(batches, 40)  # ten times through
    end = evaluate_in_model(sae, model, HOOK, batches).kl
    assert len(history) == trained.n_steps == 40 and end < 0.5 * start
    assert sum(m.kl for m in history[-4:]) < 0.6 * sum(m.kl for m in history[:4]) and 0 < history[-1].l0 <= 8
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(128), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())


def test_parts_without_rows_for_the_sae_change_nothing():
    batch = torch.cat([tokens(2), torch.full((1, 9), DROP[0])])  # the last context is special tokens only
    grads = []
    for size in (None, 1):
        sae = make_sae(torch.float64)
        trained = EndToEnd(sae, tiny_lm.model().double(), HOOK, EndToEndConfig(contexts_at_once=size), DROP)
        metrics = trained.gradients(batch)
        grads.append([getattr(sae, name).grad for name in NAMES] + [torch.tensor(metrics)])
    for whole, parts in zip(*grads):
        assert torch.allclose(whole, parts, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="^tokens: expected rows for the SAE, got special tokens and att"):
        trained.step(batch[2:])


@pytest.mark.parametrize("where", ["model", "sae"])
def test_nan_stops_and_changes_nothing(where):
    model, sae = tiny_lm.model(), make_sae()
    trained = EndToEnd(sae, model, HOOK, EndToEndConfig(lr=1e-3))
    trained.step(tokens())
    if where == "model":
        model.model.embed_tokens.weight.data[7] = float("nan")
        batch = torch.full((1, 4), 7)
    else:
        sae.b_enc.data[3], batch = float("nan"), tokens()
    # the C++ encoder sees it first
    message = (
        "(tokens: expected a finite loss and gradient, got a loss of nan at step 2; nothing was changed|"
        "pre_acts: expected no NaN, got one in row 0 .*)"
    )
    before = [param.clone() for param in sae.params]
    moments = [state["exp_avg"].clone() for state in trained.optimizer.state.values()]
    with pytest.raises(InputError, match=f"^{message}$"):
        trained.step(batch)
    for was, now in zip(before, sae.params):
        assert torch.equal(was.nan_to_num(-1), now.nan_to_num(-1))
    for was, state in zip(moments, trained.optimizer.state.values()):
        assert torch.equal(was, state["exp_avg"]) and int(state["step"]) == 1
    fresh = EndToEnd(make_sae(), model, HOOK)
    if where == "model":
        with pytest.raises(InputError, match="^tokens: expected finite activations at 'model.layers.1', got"):
            fresh.step(batch)


BAD = {
    "loss": ({"loss": "mse"}, "loss: expected one of"),
    "mse": ({"mse_coefficient": -1.0}, "mse_coefficient: expected 0 or more, got -1.0"),
    "nan": ({"mse_coefficient": math.nan}, "mse_coefficient: expected 0 or more, got nan"),
    "no hooks": (
        {"downstream_coefficient": 1.0},
        "downstream: expected hook points and a positive downstream_c",
    ),
    "no weight": (
        {"downstream": DOWNSTREAM},
        "downstream: expected hook points and a positive downstream_coeff",
    ),
    "lr": ({"lr": 0.0}, "lr: expected a positive number or None, got 0.0"),
    "sink": ({"sink_ratio": 0.0}, "sink_ratio: expected a positive number or None, got 0.0"),
    "parts": ({"contexts_at_once": 0}, "contexts_at_once: expected a positive integer, got 0"),
    "backend": ({"backend": "native"}, "backend: expected one of"),
}


@pytest.mark.parametrize("options,message", BAD.values(), ids=BAD)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        EndToEndConfig(**options)


def test_bad_input_is_refused():
    model = tiny_lm.model()
    trained = EndToEnd(make_sae(), model, HOOK)
    for bad, got in (
        (tokens().int(), r"\[3, 9\] in torch.int32"),
        (tokens()[0], r"\[9\] in torch.int64"),
        (tokens(2, 1), r"\[2, 1\] in torch.int64"),
        (tokens()[:0], r"\[0, 9\] in torch.int64"),
        ([[1, 2]], "list"),
    ):
        with pytest.raises(
            InputError, match=rf"^tokens: expected token ids \[n, at least 2\] .*, got {got}$"
        ):
            trained.step(bad)
    for batches in ([], iter([tokens()])):
        with pytest.raises(InputError, match="^contexts: expected at least one batch, or one that can be"):
            trained.fit(batches, 2)
    special = EndToEnd(SAE(SAEConfig(d_in=32, d_sae=64, k=4)), model, HOOK, drop_ids=DROP)
    with pytest.raises(InputError, match="^tokens: expected rows for the SAE, got special tokens and att"):
        special.fit([torch.full((2, 9), DROP[0])], 2)
    assert not special.sae.b_dec.any()
    with pytest.raises(InputError, match="^steps: expected a positive integer, got 0$"):
        trained.fit([tokens()], 0)
    with pytest.raises(InputError, match="^hook: expected a module path"):
        EndToEnd(make_sae(), model, "model.layers.9")
    with pytest.raises(
        InputError, match=r"^hook: expected activations \[3, 9, 32\] at .*, got \[3, 9, 48\]$"
    ):
        EndToEnd(make_sae(), model, "model.layers.1.mlp.down_proj:in").step(tokens())
    unreached = EndToEndConfig(downstream=("model.layers",), downstream_coefficient=1.0)
    with pytest.raises(InputError, match="^hook: the model's forward pass never reached 'model.layers'$"):
        EndToEnd(make_sae(), model, HOOK, unreached).step(tokens())
    for other in ({"activation": "batch_topk"}, {"layers": 2}, {"scale_by_norm": True}, {"pre_bias": False}):
        with pytest.raises(InputError, match="^sae: expected a TopK autoencoder of one layer, got SAEConfig"):
            EndToEnd(SAE(SAEConfig(d_in=32, d_sae=64, k=4, **other)), model, HOOK)
    narrow = SAE(SAEConfig(d_in=32, d_sae=64, k=4), weight_dtype=torch.bfloat16)
    with pytest.raises(
        InputError, match="^sae: expected weights in torch.float32 as its biases, got torch.bf"
    ):
        EndToEnd(narrow, model, HOOK)
