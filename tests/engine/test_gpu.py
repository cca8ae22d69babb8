"""The engine on a CUDA device: formats, the same bits twice, CUDA graphs, resume, memory. Run by `make gpu`.

The kernels have their own tests, which run there too; here is what the interpreter cannot show: TF32, graphs, asynchrony,
more than 2^31 entries, bf16 at some size.
"""

import pytest
import torch

import saefast
from saefast import reference
from saefast.activations.sources import TensorSource
from saefast.engine.state import State
from saefast.engine.step import train_step
from saefast.reference import Params
from saefast.sweep import Member, sweep
from tests.helpers.sparse_codes import fixed_code
from tests.helpers.steps import numbers_at, plan_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU was found"),
]
DEVICE = "cuda"
BF16 = torch.bfloat16


def data():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3000, 64, generator=generator) @ torch.randn(64, 64, generator=generator) + 2


def make(device=DEVICE, d_sae=512, **options):
    """A trainer whose SAE has a latent that is active in every token and eight that never are."""
    sae = saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=d_sae, k=8))
    sae.b_enc.data[3], sae.b_enc.data[8:16] = 60.0, -200.0
    base = {"total_tokens": 60 * 256, "batch_size": 256, "buffer_tokens": 1024, "lr": 1e-3, "log_every": 5}
    base |= {"checkpoint_every": 10, "dead_feature_threshold": 2000, "k_aux": 16, "auxk_alpha": 1.0}
    return saefast.Trainer(sae.to(device), saefast.TrainConfig(**(base | options)))


def batches(n, device=DEVICE):
    x = data().to(device)
    return [x[200 * i % 2000 :][:256] for i in range(n)]


def steps(n=40, **options):
    """-> the tensors of the state after n steps, the metrics of each."""
    trainer = make(**options)
    metrics = [trainer.step(x) for x in batches(n)]
    return trainer.state.tensors(), torch.stack(
        [torch.stack([value.float() for value in m]) for m in metrics]
    )


def relative(got, want):
    """Largest difference over the largest number, and root mean squares likewise."""
    got, want = got.double().cpu(), want.double().cpu()
    return (got - want).abs().max() / want.abs().max(), (got - want).norm() / want.norm()


def test_training_on_the_gpu_follows_the_cpu():
    cpu, gpu = make("cpu", backend="reference"), make(compute_dtype="fp32")
    for x in batches(40, "cpu"):
        want, got = cpu.step(x), gpu.step(x.to(DEVICE))
        assert float(got.fvu) == pytest.approx(float(want.fvu), rel=2e-3)
    for a, b in zip(cpu.sae.params, gpu.sae.params):
        assert relative(b, a)[1] < 2e-3


def test_bf16_learns_what_fp32_learns():
    want, got = (steps(60, compute_dtype=dtype)[1][-1, 1] for dtype in ("fp32", "bf16"))
    assert float(got) == pytest.approx(float(want), rel=0.02)


def code_and_weights(B=300, D=768, F=2048, K=16):
    """A code with hot and unused latents, and weights, inputs and errors that bf16 holds exactly, in fp64."""
    acts, indices, _ = fixed_code(B, F, K)
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(n, D, generator=generator) for n in (F, F, B, B)]
    W_enc, W_dec, centred, error = (t.to(BF16).double() for t in (rows[0], rows[1] * D**-0.5, *rows[2:]))
    return acts.to(BF16).double(), indices, W_enc, W_dec, centred, error


def test_decode_in_bf16():
    from saefast import triton_kernels as ops

    acts, indices, _, W_dec, x, _ = code_and_weights()
    b_dec = torch.randn(768, generator=torch.Generator().manual_seed(3))
    want, squares = reference.decode_error(acts, indices, W_dec, b_dec.double(), x, torch.float64)
    on_gpu = acts.float().to(DEVICE), indices.to(DEVICE), W_dec.to(DEVICE, BF16), b_dec.to(DEVICE)
    got, got_squares = ops.decode_error(*on_gpu, x.float().to(DEVICE), BF16)
    largest, rms = relative(got, want)
    assert largest < 1e-2 and rms < 2e-3
    assert relative(got_squares.sum(dim=1), squares)[0] < 1e-5  # of the error before it is rounded


def test_gradients_in_bf16():
    from saefast import triton_kernels as ops

    acts, indices, W_enc, W_dec, centred, error = code_and_weights()
    F, D = W_enc.shape
    indices[:, 0] = torch.where(
        (indices == 7).any(dim=1), indices[:, 0], 7
    )  # latent 7 is active in every token
    grads = {}
    for backend, device, dtype in ((reference, "cpu", torch.float64), (ops, DEVICE, torch.float32)):
        params = Params(*(t.to(device, dtype) for t in (W_enc, torch.zeros(F), W_dec, torch.zeros(D))))
        product_dtype = BF16 if device == DEVICE else dtype
        weights = State.fresh(params, compute_dtype=product_dtype).weights
        rows = (t.to(device, product_dtype) for t in (centred, error))
        code = acts.to(device, dtype), indices.to(device)
        groups = backend.group_by_latent(*code, F)
        numbers = numbers_at(plan_of(1, dtype), 1, 300, dtype, device)
        scale = torch.tensor(0.01, dtype=dtype, device=device)
        grads[device] = backend.row_grads(weights, *rows, *code, None, groups, scale, None, numbers)
    for got, want in zip(grads[DEVICE][0], grads["cpu"][0]):
        assert relative(got, want)[1] < 1e-4  # the inputs are exact in bf16
    assert float(grads[DEVICE][1]) == pytest.approx(float(grads["cpu"][1]), rel=1e-4)


@pytest.mark.parametrize("route", ["triton", "cublas"])
def test_selection_in_bf16_by_values(route):
    from saefast.triton_kernels.encode import encode_topk

    _, _, W_enc, _, x, _ = code_and_weights()
    b_enc = torch.randn(2048, generator=torch.Generator().manual_seed(4))
    exact = x @ W_enc.T + b_enc.double()
    want = exact.topk(16, dim=1).values.relu()
    acts, indices = encode_topk(x.to(DEVICE, BF16), W_enc.to(DEVICE, BF16), b_enc.to(DEVICE), 16, route=route)
    acts, indices = acts.double().cpu(), indices.long().cpu()
    got = acts.sort(dim=1, descending=True).values
    assert ((got - want).abs() <= 2**-7 * want).all()  # two ulps of bf16, at most
    assert ((acts - exact.gather(1, indices)).abs() <= 2**-8 * acts + 1e-6).all()
    assert all(len(row.unique()) == 16 for row in indices)


@pytest.mark.parametrize("precision,bound", [("ieee", 1e-6), ("tf32", 2e-3)])
def test_fp32_products(precision, bound):
    from saefast.triton_kernels.pre_acts import pre_acts_and_maxima

    generator = torch.Generator().manual_seed(6)
    x, W_enc, b_enc = (torch.randn(*size, generator=generator) for size in ((300, 768), (1000, 768), (1000,)))
    on_gpu = (t.to(DEVICE) for t in (x, W_enc, b_enc))
    pre_acts, maxima = pre_acts_and_maxima(*on_gpu, route="triton", precision=precision)
    rms = relative(pre_acts, x.double() @ W_enc.double().T + b_enc.double())[1]
    assert rms < bound
    assert precision == "ieee" or rms > 1e-5  # that it was TF32 at all
    padded = torch.nn.functional.pad(pre_acts, (0, 24), value=-torch.inf)
    assert torch.equal(maxima, padded.view(300, 16, 64).amax(dim=2))


FORMATS = [(p, s) for p in ("fp32", "split", "split24", "bf16") for s in ("fp32", "bf16", "int8")]


@pytest.mark.parametrize("formats", FORMATS, ids="-".join)
def test_every_format_trains_to_the_same_bits_twice(formats):
    options = {"param_dtype": formats[0], "state_dtype": formats[1]}
    (state, metrics), (again, same) = steps(**options), steps(**options)
    assert metrics[-1, 1] < 0.8 * metrics[0, 1]
    assert metrics[:, 4].max() > 0  # AuxK had something to do
    assert torch.equal(metrics, same)
    assert [name for name, tensor in state.items() if not torch.equal(tensor, again[name])] == []


@pytest.mark.parametrize(
    "options", [{}, {"grad_clip": 1e-3}, {"rescore": 8}], ids=["plain", "clip", "rescore"]
)
def test_a_graph_does_what_its_kernels_do(options):
    (state, metrics), (eager, same) = steps(**options), steps(cuda_graph=False, **options)
    assert torch.equal(metrics, same)
    assert [name for name, tensor in state.items() if not torch.equal(tensor, eager[name])] == []


def test_steps_do_not_wait_for_the_device():
    """Every 16th does, to count the dead. A wait raises in this mode."""
    trainer = make()
    for x in (data_of := batches(16))[:4]:
        trainer.step(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in data_of[4:15]:
            trainer.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.step == 15


PLANS = {
    "topk": {},
    "clip": {"grad_clip": 1e-2},
    "auxk": {"auxk_alpha": 0.5, "k_aux": 6, "dead_feature_threshold": 256, "dead_capacity": 128},
    "batch_topk": {"activation": "batch_topk"},
    "relu": {"activation": "relu", "code_capacity": 256 * 512},
    "relu_dense": {"activation": "relu", "dense": True},
}


@pytest.mark.parametrize("plan", PLANS)
def test_no_op_waits_for_the_device(plan):
    from saefast import triton_kernels as ops

    trainer, x = make(), batches(1)[0]
    sae = trainer.sae.config
    plan = plan_of(8, BF16, sae.d_in, sae.d_sae, **PLANS[plan])
    numbers = numbers_at(plan, 1, 256, torch.float32, DEVICE)
    with torch.no_grad():
        train_step(ops, trainer.state, x, plan, numbers)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            metrics = [train_step(ops, trainer.state, x, plan, numbers).loss for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert metrics[2] < metrics[0]


def test_resume_on_the_gpu_gives_the_same_bits(tmp_path):
    def fit(out, stop_after=None, resume=False):
        trainer = make()
        step = trainer.step
        if stop_after:
            trainer.step = lambda x, **_: (
                step(x, checked=True) if trainer.state.step < stop_after else pytest.fail("stop here")
            )
        trainer.fit(TensorSource(data()), out, resume)
        return trainer.state.tensors()

    whole = fit(tmp_path / "whole")
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        fit(tmp_path / "run", stop_after=25)
    resumed = fit(tmp_path / "run", resume=True)
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []


def test_a_sweep_on_streams_gives_the_bits_of_one_after_another(tmp_path):
    train = saefast.TrainConfig(total_tokens=64 * 256, batch_size=256, lr=2e-3, dead_feature_threshold=2000)
    members = [
        Member(saefast.SAEConfig(d_in=64, d_sae=f, k=k), train) for f in (256, 512, 1024) for k in (4, 8)
    ]
    source = TensorSource(torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0)))
    tables = [sweep(members, source, tmp_path / str(n), workers=n, device="cuda") for n in (1, 4)]
    assert len(tables[0]) == 6 and all(tables)
    for row in tables[0]:
        one, other = (
            saefast.SAE.from_pretrained(tmp_path / n / row["name"]).state_dict() for n in ("1", "4")
        )
        assert all(torch.equal(one[key], other[key]) for key in one), row["name"]


def test_nan_in_a_batch_changes_no_weight_and_is_raised_later():
    trainer, data_of = make(), batches(4)
    for x in data_of[:3]:  # the third is a graph
        trainer.step(x)
    before = {name: tensor.clone() for name, tensor in trainer.state.tensors().items()}
    bad = data_of[3].clone()
    bad[100, 5] = torch.nan
    assert not trainer.step(bad).loss.isfinite()
    for name, tensor in trainer.state.tensors().items():
        assert name in ("fired", "num_tokens_since_fired") or torch.equal(tensor, before[name]), name
    torch.cuda.synchronize()
    with pytest.raises(saefast.InputError, match="NaN or Inf in the batch of step 4"):
        trainer.step(data_of[0])


def test_too_little_memory_says_how_much_is_needed():
    sae = saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=2**19, k=8)).to(DEVICE)  # 268 MB; moments: 537 MB
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 100e6) / total)
    try:
        with pytest.raises(
            saefast.InputError, match=r"d_sae: 524288 .* GB on the device .*state_dtype = 'int8'"
        ):
            saefast.Trainer(sae, saefast.TrainConfig(total_tokens=256, batch_size=256))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("route", ["triton", "cublas"])
def test_more_entries_than_32_bits_count(route):
    from saefast.triton_kernels.encode import encode_topk

    B, D, F, K = 8192, 64, 262_144, 8  # B * F = 2^31, 12 GB
    generator = torch.Generator(DEVICE).manual_seed(1)
    centred = torch.randn(B, D, generator=generator, device=DEVICE).to(BF16)
    W_enc = torch.randn(F, D, generator=generator, device=DEVICE).to(BF16)
    acts, indices = encode_topk(centred, W_enc, torch.zeros(F, device=DEVICE), K, route=route)
    some = torch.tensor([0, 1, B // 2 - 1, B // 2, B - 2, B - 1], device=DEVICE)
    exact = centred[some].double() @ W_enc.double().T
    want, acts, indices = exact.topk(K, dim=1).values, acts[some].double(), indices[some].long()
    assert ((acts.sort(dim=1, descending=True).values - want).abs() <= 2**-7 * want).all()
    assert ((exact.gather(1, indices) - acts).abs() <= 2**-8 * acts + 1e-6).all()


def test_evaluation_on_the_gpu_equals_the_cpu():
    sae = saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=512, k=8))
    on_cpu = saefast.evaluate(sae, data())
    on_gpu = saefast.evaluate(sae.to(DEVICE), data())
    assert on_gpu.fvu == pytest.approx(on_cpu.fvu, rel=1e-3)
    assert on_gpu.l0 == pytest.approx(on_cpu.l0, rel=1e-3)
