"""The operators of `saefast.autograd.ops`: torch.library's own checks, torch.compile, and the Triton backend."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saefast import reference
from saefast.autograd import encode_topk, sae_forward
from saefast.autograd import ops as autograd_ops
from saefast.backend import load_backend
from saefast.errors import InputError
from tests.helpers.autograd_cases import CASES, NAMES, assert_same, gradients, leaves, own_loss
from tests.helpers.kernels import DEVICE


def operator_inputs(requires_grad: bool) -> dict[str, tuple]:
    """Inputs of each operator by its name; those of backward passes have no gradient."""
    x, W_enc, b_enc, W_dec, b_dec = tensors = [t.detach() for t in leaves(6, 5, 13, 3, torch.float32)]
    top_acts, top_indices = encode_topk(x, W_enc, b_enc, b_dec, 3)
    groups = reference.group_by_latent(top_acts, top_indices, 13)
    inputs = {
        "encode_topk": (x, W_enc, b_enc, b_dec, 3),
        "decode": (top_acts, top_indices, W_dec, b_dec),
    }
    for tensor in (*tensors, top_acts):
        tensor.requires_grad_(requires_grad)
    if not requires_grad:
        inputs |= {
            "grad_top_acts": (x, W_dec, top_acts, top_indices),
            "gather_rows": (-top_acts, top_indices, W_dec),
            "group_by_latent": (top_acts, top_indices, 13),
            "sum_rows": (*groups, top_acts, x),
        }
    return {name: (*values, "reference") for name, values in inputs.items()}


@pytest.mark.parametrize(
    "name, requires_grad",
    [(name, requires_grad) for requires_grad in (True, False) for name in operator_inputs(requires_grad)],
)
def test_opcheck(name, requires_grad):
    results = torch.library.opcheck(getattr(autograd_ops, name), operator_inputs(requires_grad)[name])
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


class Recorder(TorchDispatchMode):
    """The operators of saefast that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "saefast":
            self.names.append(function._schema.name.partition("::")[2])
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "wanted, ran",
    [
        ("x", ["grad_top_acts", "gather_rows"]),
        ("W_enc", ["grad_top_acts", "group_by_latent", "sum_rows"]),
        ("b_dec", ["grad_top_acts", "group_by_latent", "sum_rows"]),
        ("W_dec", ["group_by_latent", "sum_rows"]),
    ],
)
def test_backward_computes_only_what_is_wanted(wanted, ran):
    tensors = [t.requires_grad_(name == wanted) for name, t in zip(NAMES, leaves(7, 5, 13, 3))]
    x_hat, _, _ = sae_forward(*tensors, 3)
    with Recorder() as recorder:
        x_hat.sum().backward()
    assert recorder.names == ran


def compiled_equals_eager(backend: str, dynamic: bool | None, **tolerance) -> None:
    torch._dynamo.reset()

    @functools.partial(torch.compile, fullgraph=True, backend=backend, dynamic=dynamic)
    def loss(x, W_enc, b_enc, W_dec, b_dec):
        x_hat, top_acts, _ = sae_forward(x, W_enc, b_enc, W_dec, b_dec, 3)
        return own_loss(x, x_hat, top_acts)

    for B in (7, 7, 4, 9):
        tensors = leaves(B, 5, 13, 3, seed=B)
        got = torch.autograd.grad(loss(*tensors), tensors)
        assert_same(got, gradients(sae_forward, tensors, 3), **tolerance)


@pytest.mark.parametrize("dynamic", [False, True, None], ids=["static", "dynamic", "automatic"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(backend, dynamic):
    compiled_equals_eager(backend, dynamic, rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_with_inductor():
    compiled_equals_eager("inductor", None)


TRITON_CASES = {name: CASES[name] for name in ("usual", "one token", "k 1", "k all", "one column")}


@pytest.mark.parametrize("shape", TRITON_CASES.values(), ids=TRITON_CASES.keys())
def test_triton_equals_reference(shape):
    tensors, k = leaves(*shape, torch.float32, DEVICE), shape[3]
    triton, plain = (functools.partial(sae_forward, backend=name) for name in ("triton", "reference"))
    got, want = triton(*tensors, k), plain(*tensors, k)
    by_latent = [code[2].sort(dim=1) for code in (got, want)]  # backends may order a row differently
    assert torch.equal(by_latent[0].values, by_latent[1].values)
    acts = [code[1].gather(1, order.indices) for code, order in zip((got, want), by_latent)]
    assert_same([got[0], acts[0]], [want[0], acts[1]], ("x_hat", "top_acts"), rtol=1e-5, atol=1e-5)
    assert_same(gradients(triton, tensors, k), gradients(plain, tensors, k), rtol=1e-5, atol=1e-5)


def test_triton_takes_any_strides():
    """Inputs and, from the sums, gradients that are not contiguous; the kernels want them so."""
    x, W_enc, b_enc, W_dec, b_dec = leaves(7, 5, 13, 3, torch.float32, DEVICE)

    def grads(backend):
        inputs = x, W_enc, b_enc, W_dec, b_dec
        strided = [t.t().clone(memory_format=torch.contiguous_format).t() for t in inputs]
        strided[2], strided[4] = (torch.stack([t, t], dim=1)[:, 0] for t in (b_enc, b_dec))
        assert not any(t.is_contiguous() for t in strided)
        x_hat, top_acts, _ = sae_forward(*strided, 3, backend)
        return torch.autograd.grad(x_hat.sum() + top_acts.sum(), inputs)

    assert_same(grads("triton"), grads("reference"), rtol=1e-5, atol=1e-5)


def test_triton_without_tokens():
    tensors = leaves(0, 5, 13, 3, torch.float32, DEVICE)
    x_hat, top_acts, _ = sae_forward(*tensors, 3, backend="triton")
    (x_hat.sum() + top_acts.sum()).backward()
    assert not any(tensor.grad.any() for tensor in tensors)


@pytest.mark.parametrize(
    "shape", [(1, 8, 20, 3), (70, 33, 300, 5), (256, 64, 1100, 32), (0, 8, 20, 3)], ids=str
)
def test_cpu_equals_reference(shape):
    pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
    tensors, k = leaves(*shape, torch.float32), shape[3]
    auto, plain = (functools.partial(sae_forward, backend=name) for name in ("auto", "reference"))
    got, want = auto(*tensors, k), plain(*tensors, k)
    assert torch.equal(got[2], want[2])
    generator = torch.Generator().manual_seed(9)
    above = [torch.randn(value.shape, generator=generator) for value in want[:2]]

    def gradients_of(result):
        """With given ones of the outputs: those of a loss would magnify the rounding of x_hat."""
        return torch.autograd.grad(result[:2], tensors, above)

    pairs = [*zip(got[:2], want[:2]), *zip(gradients_of(got), gradients_of(want))]
    for a, b in pairs:  # sums of fp32 in another order: small ones of large terms
        assert not b.numel() or float((a - b).abs().max()) <= 3e-6 * float(b.abs().max())


def test_backend_is_chosen_by_device_and_name(monkeypatch):
    fp32, fp64 = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    auto = autograd_ops.load_ops(load_backend("auto").NAME, "cpu")
    assert autograd_ops.choose("auto", fp32) == autograd_ops.load_ops("auto", "cpu")
    assert autograd_ops.choose("auto", fp32).encode_topk is auto.encode_topk
    assert autograd_ops.choose("reference", fp32) is autograd_ops.REFERENCE
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = autograd_ops.load_ops("triton", "cpu")
    assert autograd_ops.choose("triton", fp32) is triton and triton.decode.__module__.endswith(
        "kernels.decode"
    )
    with pytest.raises(InputError, match="'triton' needs a GPU and at most fp32, got torch.float64 on cpu"):
        autograd_ops.choose("triton", fp64)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(InputError, match="'triton' needs a GPU"):
        encode_topk(*leaves(2, 3, 4, 1, torch.float32)[:3], torch.zeros(3), 1, backend="triton")
