"""Which backend runs, and why another one cannot."""

import importlib
import inspect
import platform
import sys

import pytest
import torch

import saefast
from saefast import backend, instructions


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def pretend_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


def test_triton_without_a_gpu(no_interpreter):
    if not torch.cuda.is_available():
        with pytest.raises(saefast.InputError, match="backend: 'triton' cannot be used here: no CUDA GPU"):
            saefast.load_backend("triton", "cuda")


def test_an_old_gpu_is_named_and_auto_goes_on_without_the_kernels(no_interpreter, monkeypatch, caplog):
    pretend_gpu(monkeypatch, (7, 5))
    with pytest.raises(
        saefast.InputError, match="Some GPU has compute capability 7.5, 8.0 or newer is needed"
    ):
        saefast.load_backend("triton", "cuda")
    backend._said.clear()
    assert saefast.load_backend("auto", "cuda").NAME == "reference"
    assert "compute capability 7.5" in caplog.text
    pretend_gpu(monkeypatch, (9, 0))
    assert backend.unavailable("triton") is None
    assert saefast.load_backend("auto", "cuda").NAME == "triton"


def test_how_the_native_encoder_multiplies_is_said(monkeypatch, caplog):
    """By `saefast info`, and once in the log where it takes torch's products for want of instructions."""
    isas = instructions.native_isas()
    if isas is None:
        pytest.skip("the C++ extension saefast._C is not built")
    monkeypatch.delenv("SAEFAST_ISA", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    if isas[0] != "plain":
        assert instructions.BYTES_BY[isas[0]] in instructions.native_encoder()
    monkeypatch.setenv("SAEFAST_ISA", "plain")
    assert "SAEFAST_ISA=plain leaves no instruction" in instructions.native_encoder()
    monkeypatch.setattr(backend, "_said", set())
    for _ in range(2):
        saefast.load_backend("native")
    (message,) = caplog.messages
    assert message == f"backend: native; its encoder takes {instructions.native_encoder()}"
    monkeypatch.setattr(backend, "_said", set())
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    saefast.load_backend("native")
    assert "Accelerate" in instructions.native_encoder() and len(caplog.messages) == 1
    from saefast import _C

    monkeypatch.setattr(_C, "isas", lambda: ["plain"])
    monkeypatch.setenv("SAEFAST_ISA", "")
    monkeypatch.setattr(sys, "platform", "linux")
    assert "this processor has no instruction that multiplies bytes" in instructions.native_encoder()


@pytest.mark.parametrize(
    "found,message", [("3.2.0", "triton 3.2.0 is too old, 3.3"), (None, "not installed")]
)
def test_triton_too_old_or_missing(no_interpreter, monkeypatch, found, message):
    pretend_gpu(monkeypatch, (9, 0))

    def version(name):
        if found is None:
            raise backend.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(backend, "version", version)
    with pytest.raises(saefast.InputError, match=message):
        saefast.load_backend("triton", "cuda")


def test_a_backend_for_another_device_is_refused(no_interpreter, monkeypatch):
    pretend_gpu(monkeypatch, (9, 0))
    with pytest.raises(saefast.InputError, match="'triton' needs an SAE on a CUDA device, got one on 'cpu'"):
        saefast.load_backend("triton", "cpu")
    if backend.unavailable("native") is None:
        with pytest.raises(saefast.InputError, match="'native' needs an SAE on the CPU, got one on 'cuda'"):
            saefast.load_backend("native", "cuda")
        assert saefast.load_backend("auto", "cpu").NAME == "native"


def test_every_backend_has_every_op():
    import saefast.reference
    import saefast.triton_kernels

    for module in (saefast.reference, saefast.triton_kernels, sys.modules.get("saefast.native")):
        assert module is None or [op for op in backend.OPS if not hasattr(module, op)] == []


def test_weights_that_are_not_contiguous_are_refused():
    sae = saefast.SAE(saefast.SAEConfig(d_in=8, d_sae=16, k=2))
    sae.W_dec.data = sae.W_dec.data.T.contiguous().T
    with pytest.raises(saefast.InputError, match="sae: W_dec: expected contiguous memory, got strides"):
        saefast.Trainer(sae, saefast.TrainConfig(total_tokens=1))


def test_a_batch_that_is_not_contiguous_trains_as_its_copy():
    x = torch.randn(8, 32).T
    results = []
    for batch in (x, x.contiguous()):
        sae = saefast.SAE(saefast.SAEConfig(d_in=8, d_sae=16, k=2))
        saefast.Trainer(sae, saefast.TrainConfig(total_tokens=32, batch_size=32, lr=1e-3)).step(batch)
        results.append(sae.W_enc.data)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", backend.MODULES)
def test_every_backend_is_as_the_protocol_says(name):
    """The same parameters in the same order with the same defaults; a backend may have more behind a star."""
    if backend.unavailable(name):
        pytest.skip(backend.unavailable(name))
    module = importlib.import_module(backend.MODULES[name])
    for op in backend.OPS:
        wanted = list(inspect.signature(getattr(backend.Backend, op)).parameters.values())[1:]
        found = [
            p for p in inspect.signature(getattr(module, op)).parameters.values() if p.kind != p.KEYWORD_ONLY
        ]
        assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in wanted], op
    constants = [name for name in backend.Backend.__annotations__ if not hasattr(module, name)]
    assert constants == []
    assert len(backend.OPS) == 21
