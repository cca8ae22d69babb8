"""torch's default dtype and device change nothing: every tensor that is made from nothing names its own.

Results too can have the default dtype (a quotient of integers), which no reading of the code finds: the main ways through the
package run under other defaults, and give the same bits.
"""

import ast
import contextlib
import hashlib
from pathlib import Path

import pytest
import torch

import saefast
from saefast import formats
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.sources import SyntheticSource, TensorSource
from saefast.train.run import plots

ROOT = Path(__file__).parents[2]
FACTORIES = {
    *(
        "zeros",
        "ones",
        "empty",
        "full",
        "tensor",
        "as_tensor",
        "asarray",
        "scalar_tensor",
        "eye",
        "empty_strided",
    ),
    *("rand", "randn", "randint", "randperm", "normal", "arange", "linspace", "logspace"),
    *("sparse_coo_tensor", "sparse_csr_tensor", "sparse_compressed_tensor", "tril_indices", "triu_indices"),
}
FILES = [path for room in ("saefast", "triton_kernels") for path in sorted((ROOT / room).rglob("*.py"))]


def options(trees):
    """Names of the dicts that hold both, for `torch.zeros(3, **FP32)`."""
    assigned = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AnnAssign))
    ]
    for node in assigned:
        pairs = [(node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value)]
        if all(isinstance(side, ast.Tuple) for side in pairs[0]):
            pairs = list(zip(*(side.elts for side in pairs[0])))
        for target, value in pairs:
            keys = (
                {getattr(key, "value", None) for key in value.keys} if isinstance(value, ast.Dict) else set()
            )
            if isinstance(target, ast.Name) and {"dtype", "device"} <= keys:
                yield target.id


def unnamed(tree, both):
    """Lines with a call that leaves its dtype or device to torch's defaults."""
    for node in ast.walk(tree):
        of_torch = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if of_torch and ast.unparse(node.func.value) == "torch":
            given = {keyword.arg for keyword in node.keywords}
            given |= (
                {"dtype", "device"}
                if {ast.unparse(k.value) for k in node.keywords if not k.arg} & both
                else set()
            )
            if node.func.attr in FACTORIES and not {"dtype", "device"} <= given:
                yield node.lineno
            if node.func.attr == "Generator" and not node.args and "device" not in given:
                yield node.lineno


def test_every_new_tensor_names_its_dtype_and_device():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    both = set(options(trees.values()))
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path, tree in trees.items() for line in unnamed(tree, both)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code", ["torch.zeros(3)", "torch.arange(3, dtype=torch.int64)", "torch.Generator()"]
)
def test_a_call_without_them_is_found(code):
    assert list(unnamed(ast.parse(code), {"FP32"})) == [1]
    assert list(unnamed(ast.parse("torch.ones(3, **FP32)\ntorch.Generator('cpu')"), {"FP32"})) == []


D, F, B = 16, 64, 32
SAES = {
    "topk": ({"k": 4}, {"k_aux": 4}),
    "topk by norm": (
        {"k": 4, "scale_by_norm": True},
        {"unit_norm": False, "auxk_scale": "loss", "auxk_detached": False},
    ),
    "multi-topk": ({"k": 4}, {"multi_topk": 4, "grad_clip": 0.1, "normalize_input": True}),
    "batch_topk": ({"activation": "batch_topk", "k": 4}, {"ema_decay": 0.9}),
    "matryoshka": ({"activation": "matryoshka", "k": 4}, {"loss": "mse"}),
    "group_max": ({"activation": "group_max", "k": 4}, {"optimizer": "adamw"}),
    "relu": (
        {"activation": "relu"},
        {
            "penalty": "lp",
            "p_end": 0.5,
            "sparsity_coefficient": 0.1,
            "resample_steps": (2,),
            "resample_tokens": B,
        },
    ),
    "jumprelu": (
        {"activation": "jumprelu"},
        {"penalty": "target_l0", "target_l0": 4.0, "sparsity_coefficient": 0.1},
    ),
    "gated": ({"activation": "gated"}, {"penalty": "l1", "sparsity_coefficient": 0.1}),
    "transcoder": ({"k": 4, "d_out": 12, "pre_bias": False, "skip": True}, {}),
    "crosscoder": (
        {"activation": "relu", "layers": 2},
        {"penalty": "l1", "sparsity_coefficient": 0.1, "norm_weighted": True, "unit_norm": False},
    ),
    "formats": ({"k": 4}, {"param_dtype": "split", "state_dtype": "int8", "backend": "reference"}),
}
DEFAULTS = {
    "bf16": lambda: default_dtype(torch.bfloat16),
    "fp16": lambda: default_dtype(torch.float16),
    "fp64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def sha(tensors):
    found = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        found.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        found.update(t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def rows(width, n=6 * B):
    """Of the default dtype and device of a session without others."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(3)) + 0.3


def life(of_sae, of_run, backend, x, folder):
    """An SAE that is made, trained by steps and by `fit`, evaluated, saved and loaded: what it leaves."""
    config = saefast.SAEConfig(d_in=D, d_sae=F, **of_sae)
    options = {"backend": backend, "lr": 1e-3, "dead_feature_threshold": 2 * B} | of_run
    sae = saefast.SAE(config)
    made = sha(sae.tensors)
    train = saefast.TrainConfig(total_tokens=3 * B, batch_size=B, log_every=1, **options)
    target = None if config.d_out is None else x[:B, config.d_in :].contiguous()
    stepped = saefast.Trainer(saefast.SAE(config), train).step(x[:B, : config.d_in].contiguous(), target)
    trainer = saefast.Trainer(sae, train)
    trainer.fit(x, out=folder)
    trained = sha(trainer.tensors() | trainer.exported())
    evaluation = saefast.evaluate(sae, x.clone(), backend)
    loaded = saefast.SAE.from_pretrained(folder)
    out = loaded(x[:, : config.d_in].contiguous())
    out = {n: t for n, t in out._asdict().items() if not (n == "fvu" and config.d_out)}
    metrics = {name: (value.dtype, float(value)) for name, value in stepped._asdict().items()}
    logged = (folder / "metrics.jsonl").read_text().splitlines()
    logged = [line.split('"tokens_per_second"')[0] for line in logged]
    return made, metrics, trained, evaluation, sha(loaded.tensors), sha(out), logged


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "auto"])
@pytest.mark.parametrize("name", SAES)
def test_training_gives_the_same_bits_under_any_default(name, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda folder: None)
    of_sae, of_run = SAES[name]
    x, backend = rows(D + of_sae.get("d_out", 0)), of_run.get("backend", backend)
    want = life(of_sae, of_run, backend, x, tmp_path / "want")
    for defaults, entered in DEFAULTS.items():
        with entered():
            got = life(of_sae, of_run, backend, x, tmp_path / defaults)
        assert got == want, defaults


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_sources_buffers_and_foreign_formats_give_the_same_bits_under_any_default(defaults, tmp_path):
    saes = [
        saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, **of_sae))
        for of_sae in (
            {"k": 4},
            {"activation": "batch_topk", "k": 4},
            {"activation": "jumprelu"},
            {"activation": "relu"},
        )
    ]
    x = rows(D)

    def found(folder):
        source = SyntheticSource(D, 20, 3, 100, noise=0.1)
        yield sha({"rows": torch.cat(list(source)), "taken": source.take(torch.tensor([5, 3], device="cpu"))})
        batches = iter(ShuffleBuffer(TensorSource(x), 8, 64, seed=1))
        yield sha({str(i): next(batches).clone() for i in range(5)})
        for i, sae in enumerate(saes):
            for name in formats.FORMATS:
                path = folder / f"{i}-{name}"
                try:
                    formats.save(sae, path, name)
                except saefast.InputError as error:
                    yield str(error)
                else:
                    yield sha(saefast.SAE.from_pretrained(path, format=name).tensors)

    want = list(found(tmp_path / "want"))
    with DEFAULTS[defaults]():
        got = list(found(tmp_path / "got"))
    assert got == want and sum(len(value) == 64 for value in got) > 8
