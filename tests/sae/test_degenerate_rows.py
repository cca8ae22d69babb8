"""The module on rows of zeros, equal rows, ties, 16-bit formats and autocast: outputs and gradients are those of plain PyTorch
in fp64, written here by hand, for every architecture and every normalisation of the input."""

import math

import pytest
import torch

from saefast import SAE, SAEConfig, evaluate
from saefast.autograd import sae_forward
from saefast.backend import unavailable

D, F, B = 16, 48, 12
CONFIGS = {
    "topk": {"k": 4},
    "topk, all": {"k": F},
    "topk by norm": {"k": 4, "scale_by_norm": True},
    "topk, untied": {"k": 4, "pre_bias": False},
    "batch_topk": {"activation": "batch_topk", "k": 4},
    "batch_topk by norm": {"activation": "batch_topk", "k": 4, "scale_by_norm": True},
    "matryoshka": {"activation": "matryoshka", "k": 4},
    "group_max": {"activation": "group_max", "k": 4},
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu"},
    "jumprelu by norm": {"activation": "jumprelu", "scale_by_norm": True},
    "gated": {"activation": "gated"},
    "skip transcoder": {"k": 4, "d_out": 12, "pre_bias": False, "skip": True},
    "layer_norm": {"k": 4, "input_norm": "layer_norm"},
    "constant_norm": {"k": 4, "input_norm": "constant_norm"},
    "scale": {"k": 4, "input_norm": "scale", "scales": (2.0, 0.5)},
    "one latent": {"k": 1, "d_sae": 1},
    "one input": {"k": 4, "d_in": 1},
    "one input, layer_norm": {"k": 4, "d_in": 1, "input_norm": "layer_norm"},
    "one input, constant_norm": {"k": 4, "d_in": 1, "input_norm": "constant_norm"},
}


def make(name, dtype=torch.float64):
    """Numbers of few bits, so that products are exact in fp32 too, and every latent has a twin: ties wherever one can be."""
    sae = SAE(SAEConfig(**({"d_in": D, "d_sae": F} | CONFIGS[name])), seed=1)
    generator = torch.Generator().manual_seed(2)
    for param in sae.tensors.values():
        param.copy_((torch.randn(param.shape, generator=generator) * 2).round() / 4)
    half = sae.config.d_sae // 2
    for param in (sae.W_enc.data, sae.b_enc.data):
        param[half : 2 * half] = param[:half]
    if "threshold" in sae.tensors:
        sae.threshold.data.abs_()
    if sae.config.scale_by_norm:  # norms 1 and 2
        sae.W_dec.data.copy_(0.25 * (1 - 2.0 * (sae.W_dec.data < 0)) * (1 + torch.arange(F)[:, None] % 2))
    return sae.to(dtype)


def some(d_in):
    return (torch.randn(B, d_in, generator=torch.Generator().manual_seed(3)) * 4).round() / 4


def with_zeros(d_in):
    x = some(d_in)
    x[::3] = 0
    return x


KINDS = {
    "some": some,
    "with zeros": with_zeros,
    "zeros": lambda d_in: torch.zeros(B, d_in),
    "minus zeros": lambda d_in: torch.full((B, d_in), -0.0),
    "equal": lambda d_in: some(d_in)[:1].expand(B, d_in),
    "constant rows": lambda d_in: some(d_in)[:, :1].expand(B, d_in).contiguous(),
    "one row": lambda d_in: some(d_in)[:1],
    "no rows": lambda d_in: some(d_in)[:0],
    "transposed": lambda d_in: some(d_in).T.contiguous().T,
    "sliced": lambda d_in: torch.cat([some(d_in), some(d_in)], dim=1)[:, :d_in],
    "silent": lambda d_in: some(d_in),
}


def largest(scores, k):
    """1 at the k largest of each row, of equal ones at those of smaller indices."""
    order = scores.detach().argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(scores).scatter(1, order, 1.0)


def formula(config, p, x):
    """x [B, d_in] -> x_hat, acts [B, F], of plain operations."""
    scale = shift = None
    rows = x
    if config.input_norm == "layer_norm" and config.d_in > 1:
        shift = x.mean(dim=1, keepdim=True)
        square = (x - shift).square().sum(dim=1, keepdim=True) / (config.d_in - 1)
        scale = torch.where(square > 0, square, 1).sqrt() * (square > 0)
        rows = (x - shift) / (scale + 1e-5)
    elif config.input_norm == "layer_norm":
        scale, shift, rows = torch.zeros_like(x), x, x - x
    elif config.input_norm == "constant_norm":
        square = x.square().sum(dim=1, keepdim=True)
        scale = torch.where(square > 0, square, 1).sqrt() * (square > 0) / math.sqrt(config.d_in)
        rows = torch.where(square > 0, x / torch.where(scale > 0, scale, 1), 0)
    elif config.scales is not None:
        scale, rows = 1 / config.scales[1], x * config.scales[0]
    pre = (rows - (p["b_dec"] if config.pre_bias else 0)) @ p["W_enc"].T + p["b_enc"]
    norms = p["W_dec"].norm(dim=1) if config.scale_by_norm else 1.0
    scores = (pre * norms).detach()
    if config.activation == "topk":
        acts = pre.relu() * largest(scores, config.k)
    elif config.activation == "group_max":
        parts = [
            pre_of_part.relu() * largest(pre_of_part, 1) for pre_of_part in pre.split(F // config.k, dim=1)
        ]
        acts = torch.cat(parts, dim=1)
    elif config.activation == "relu":
        acts = pre.relu()
    elif config.activation == "gated":
        dot = pre - p["b_enc"]
        acts = (p["r_mag"].exp() * dot + p["b_mag"]).relu() * (pre > 0)
    else:
        acts = pre * (scores > p["threshold"].detach())
    x_hat = acts @ p["W_dec"] + p["b_dec"]
    if config.skip:
        x_hat = x_hat + rows @ p["W_skip"].T
    x_hat = x_hat if scale is None else x_hat * scale
    return x_hat if shift is None else x_hat + shift, acts


def fvu_of(x_hat, x):
    equal = len(x) < 2 or bool((x == x[0]).all())
    variance = max(1, x.numel()) if equal else float((x - x.mean(dim=0)).square().sum())
    return float((x_hat - x).square().sum()) / variance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_those_of_the_formula(name, kind):
    sae = make(name)
    if kind == "silent":
        sae.b_enc.data -= 1000
        if "b_mag" in sae.tensors:
            sae.b_mag.data -= 1000
    config = sae.config
    x = KINDS[kind](config.d_in).double().detach().requires_grad_()
    p = {n: t.detach().clone().requires_grad_() for n, t in sae.named_parameters()}
    leaf = x.detach().clone().requires_grad_()
    want, acts = formula(config, p, leaf)
    out = sae(x)
    torch.testing.assert_close(out.x_hat, want, rtol=1e-12, atol=1e-10)
    dense = torch.zeros(len(x), config.d_sae, dtype=torch.float64).scatter_add(
        1, out.top_indices.long(), out.top_acts
    )
    torch.testing.assert_close(dense, acts, rtol=1e-12, atol=1e-10)
    pairs = zip(out.top_acts.tolist(), out.top_indices.tolist())
    for values, indices in pairs:
        keys = [(-value, index) for value, index in zip(values, indices) if value > 0]
        assert keys == sorted(keys)  # largest first, of equal ones the smaller index first
    if config.d_out is None:
        assert float(out.fvu) == pytest.approx(fvu_of(want, leaf), rel=1e-9, abs=1e-12)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ((out.x_hat * weights).sum() + out.top_acts.square().sum()).backward()
    ((want * weights).sum() + acts.square().sum()).backward()
    for param, target in [(x, leaf), *((getattr(sae, n), t) for n, t in p.items())]:
        got, grad = param.grad, target.grad
        none = torch.zeros_like(param)
        torch.testing.assert_close(
            none if got is None else got, none if grad is None else grad, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_16_bit_saes_and_autocast(name):
    """On weights that the format holds: outputs of the format, gradients in the format of each parameter."""
    for dtype, autocast in (
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, True),
        (torch.bfloat16, True),
    ):
        sae, exact = make(name, dtype), make(name)
        x = with_zeros(sae.config.d_in).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = sae(x)
            loss = (out.x_hat.float() - 1).square().sum()
        loss.backward()
        x_hat, _ = formula(exact.config, dict(exact.named_parameters()), x.detach().double())
        assert out.x_hat.dtype == dtype and out.x_hat.isfinite().all()
        assert all(p.grad is None or p.grad.dtype == p.dtype == dtype for p in sae.parameters())
        assert all(p.grad is None or p.grad.isfinite().all() for p in [x, *sae.parameters()])
        if sae.config.input_norm in ("layer_norm", "constant_norm"):
            continue  # rounded rows have another top k
        assert (out.x_hat.double() - x_hat).norm() <= 0.02 * x_hat.norm(), (dtype, autocast)
        if sae.config.d_out is None:
            want = fvu_of(x_hat, x.detach().double())
            assert out.fvu.dtype == torch.float32 and float(out.fvu) == pytest.approx(
                want, rel=0.02, abs=1e-3
            )
        (x_hat - 1).square().sum().backward()
        pairs = list(zip(sae.parameters(), exact.parameters()))
        pairs = [(a.grad.double(), b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
        most = max(float(wanted.norm()) for _, wanted in pairs)
        for got, wanted in pairs:
            assert (got - wanted).norm() <= 0.03 * max(float(wanted.norm()), 0.1 * most), (dtype, autocast)


def test_the_case_of_the_issue():
    """A padding row among others: what the trainer's user sees first."""
    for change in (
        lambda sae: sae,
        lambda sae: sae.bfloat16(),
        lambda sae: sae.half(),
        lambda sae: sae.double(),
    ):
        sae = change(SAE(SAEConfig(d_in=16, d_sae=64, k=4)))
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(sae.b_dec.dtype)
        x[3] = 0
        sae(x).x_hat.square().sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in (sae.W_enc, sae.W_dec))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_operators_choose_among_equals_as_the_module_does(backend, dtype):
    for rows in KINDS.values():
        sae, x = make("topk", dtype), rows(D).to(dtype).detach().requires_grad_()
        leaf = x.detach().clone().requires_grad_()
        out = sae(leaf)
        out.x_hat.square().sum().backward()
        want = [leaf.grad, *(p.grad.clone() for p in sae.parameters())]
        sae.zero_grad()
        x_hat, _, _ = sae_forward(x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, 4, backend)
        x_hat.square().sum().backward()
        torch.testing.assert_close(x_hat, out.x_hat, rtol=1e-5, atol=1e-5)
        for got, wanted in zip([x.grad, *(p.grad for p in sae.parameters())], want):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
@pytest.mark.parametrize("unit", [1e30, 1e-30, 1e-38, 1e-42])
def test_normalised_rows_of_any_magnitude(norm, unit):
    """The code of a row divided by its norm does not depend on the norm; that of layer_norm does below its 1e-5."""
    sae = make("layer_norm" if norm == "layer_norm" else "constant_norm", torch.float32)
    x = some(D) * unit
    out = sae(x)
    want, acts = formula(sae.config, {n: t.double() for n, t in sae.tensors.items()}, x.double())
    torch.testing.assert_close(out.x_hat / unit, (want / unit).float(), rtol=1e-3, atol=1e-2)
    dense = torch.zeros(B, F).scatter_add(1, out.top_indices.long(), out.top_acts)
    torch.testing.assert_close(dense, acts.float(), rtol=1e-4, atol=1e-4)
    assert out.fvu.isfinite()


def test_no_latents_in_any_row():
    sae = make("relu")
    sae.b_enc.data -= 1000
    out = sae(some(D).double())
    assert out.top_acts.shape == (B, 0) and torch.equal(out.x_hat, sae.b_dec.expand(B, D))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", CONFIGS)
def test_evaluate_has_the_figures_of_the_formula(name, backend):
    """In fp32, whose rounding of a normalised row may choose among twins only: these have equal numbers."""
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    sae = make(name, torch.float32)
    half = F // 2
    if sae.config.input_norm in ("layer_norm", "constant_norm") and sae.config.d_in > 1:
        sae.W_dec.data[half:] = sae.W_dec.data[:half]
    exact = {n: t.double() for n, t in sae.tensors.items()}
    for kind, rows in KINDS.items():
        x = rows(sae.config.d_in)
        if not len(x):
            continue
        target = torch.arange(12.0).expand(len(x), 12) * x[:, :1] if sae.config.d_out else x
        x_hat, acts = formula(sae.config, exact, x.double())
        found = evaluate(sae, torch.cat([x, target], dim=1) if sae.config.d_out else x, backend)
        assert found.fvu == pytest.approx(fvu_of(x_hat, target.double()), rel=1e-4, abs=1e-9), kind
        assert found.l0 == pytest.approx(float((acts > 0).sum()) / len(x), rel=1e-9), kind
        assert all(math.isfinite(value) for value in found if isinstance(value, float)), kind
