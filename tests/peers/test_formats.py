"""Files beside the code of the projects they come from: theirs read by us, ours read by them, on real activations.

Equal is: every output within 1e-5 of the largest, and the same latents active but for pre-activations within rounding
of the edge.
"""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.peers.runs import stand_ins
from saefast import SAE, formats
from tests.peers.format_checks import D_SAE, K, dense, same, same_code, scramble, there_and_back

# sparsify

SPARSIFY = [
    {"k": K},
    {"k": K, "activation": "groupmax"},
    {"k": K, "num_latents": 0, "expansion_factor": 2},
    {"k": K, "transcode": True},
    {"k": K, "transcode": True, "skip_connection": True},
    {"k": K, "multi_topk": True},
]


def saved_coder(folder, monkeypatch, **options):
    """A `SparseCoder` that was saved as "layers.3"."""
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(576, SparseCoderConfig(**{"num_latents": D_SAE} | options))
    scramble(coder)
    coder.save_to_disk(folder / "layers.3")
    return coder


@pytest.mark.parametrize("options", SPARSIFY, ids="-".join)
def test_sparsify(options, x, tmp_path, monkeypatch):
    coder = saved_coder(tmp_path, monkeypatch, **options)
    sae = there_and_back(tmp_path / "layers.3", tmp_path, "sparsify")

    def output(coder):
        found = coder.encode(x)
        acts = torch.zeros(len(x), coder.num_latents).scatter_(1, found.top_indices, found.top_acts)
        x_hat = coder.decode(found.top_acts, found.top_indices)
        return acts, x_hat if coder.W_skip is None else x_hat + x @ coder.W_skip.mT

    acts, x_hat = output(coder)
    same(sae(x).x_hat, x_hat)
    same_code(dense(sae, x), acts)
    assert torch.equal(output(type(coder).load_from_disk(tmp_path / "again"))[1], x_hat)
    assert sae.metadata == {"hook_name": "layers.3"}


# dictionary_learning


@pytest.fixture(scope="module")
def learning():
    with stand_ins("nnsight", "datasets", "zstandard"):
        from dictionary_learning import dictionary, utils
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
        from dictionary_learning.trainers.top_k import AutoEncoderTopK
    with_k = {cls.__name__: cls for cls in (AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE)}
    return dictionary, utils, with_k


KINDS = [
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
]


@pytest.mark.parametrize("kind", KINDS)
def test_dictionary_learning(kind, learning, x, tmp_path):
    dictionary, utils, topk = learning
    arguments = {"k": K} if kind in topk else {}
    if kind == "MatryoshkaBatchTopKSAE":
        arguments["group_sizes"] = [24, 24, 48]
    cls = topk.get(kind) or getattr(dictionary, kind)
    ae = cls(576, D_SAE, **arguments)
    scramble(ae)
    if "threshold" in ae.state_dict() and kind in topk:
        ae.threshold.fill_(1.2)
    if kind == "AutoEncoder":  # or its loader would change the numbers
        ae.decoder.weight.data /= ae.decoder.weight.norm(dim=0)
    folder = tmp_path / "trainer_0"
    folder.mkdir()
    torch.save(ae.state_dict(), folder / "ae.pt")
    trainer = {
        "trainer_class": "SomeTrainer",
        "dict_class": kind,
        "activation_dim": 576,
        "dict_size": D_SAE,
        "lr": 1e-3,
        "layer": 12,
        "lm_name": "smollm2",
        "submodule_name": "resid_post_layer_12",
    }
    trainer |= arguments
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    sae = there_and_back(folder, tmp_path, "dictionary_learning")
    loaded, config = utils.load_dictionary(str(tmp_path / "again"), device="cpu")
    assert config["trainer"] == trainer
    for model in (ae, loaded):
        same(sae(x).x_hat, model.decode(model.encode(x)))
        same_code(dense(sae, x), model.encode(x))
    new = SAE.of(sae.config, dict(sae.named_parameters()))  # knows nothing of where it comes from
    assert formats.save(new, tmp_path / "new", "dictionary_learning") == []
    loaded, _ = utils.load_dictionary(str(tmp_path / "new"), device="cpu")
    same(sae(x).x_hat, loaded.decode(loaded.encode(x)))


def test_dictionary_learning_backups_and_steps(learning, x, tmp_path):
    """The file of `backup_steps` in place of the SAE, and one of `save_steps`."""
    dictionary, _, _ = learning
    ae = dictionary.AutoEncoder(576, D_SAE)
    scramble(ae)
    optimizer = torch.optim.Adam(ae.parameters())
    ae(x).sum().backward()
    optimizer.step()
    backup = {
        "step": 3,
        "ae": ae.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": {},
        "norm_factor": 2.0,
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(backup, tmp_path / "ae.pt")
    torch.save(ae.state_dict(), tmp_path / "checkpoints" / "ae_3.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    for path in (tmp_path, tmp_path / "checkpoints" / "ae_3.pt"):
        same(SAE.from_pretrained(path)(x).x_hat, ae(x))


def test_a_threshold_that_was_never_set_lets_every_positive_activation_pass(learning, x, tmp_path):
    topk = learning[2]
    ae = topk["BatchTopKSAE"](576, D_SAE, K)
    scramble(ae)
    assert float(ae.threshold) == -1
    torch.save(ae.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "k": K}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    sae = SAE.from_pretrained(tmp_path)
    same_code(dense(sae, x), ae.encode(x))
    formats.save(sae, tmp_path / "again", "dictionary_learning")
    assert float(torch.load(tmp_path / "again" / "ae.pt", weights_only=True)["threshold"]) == -1


# openai: its code is not on PyPI; beside it where it can be imported, and beside its formula


@pytest.mark.parametrize("kind", ["TopK", "ReLU"])
@pytest.mark.parametrize("tied", [False, True])
def test_openai(kind, tied, x, tmp_path):
    model = pytest.importorskip("sparse_autoencoder.model", reason="openai's code is not on PyPI")
    activation = model.TopK(K) if kind == "TopK" else torch.nn.ReLU()
    ae = model.Autoencoder(D_SAE, 576, activation=activation, tied=tied, normalize=kind == "TopK")
    scramble(ae)
    ae(x)  # fills the statistics
    path = tmp_path / "theirs" / "12.pt"
    path.parent.mkdir()
    torch.save(ae.state_dict(), path)
    sae = SAE.from_pretrained(path)
    acts, info = ae.encode(x)
    same(sae(x).x_hat, ae.decode(acts, info))
    same_code(dense(sae, x), acts)
    sae.save_pretrained(tmp_path / "ours")
    formats.save(SAE.from_pretrained(tmp_path / "ours"), tmp_path / "again", "openai")
    mine, theirs = (torch.load(p, weights_only=True) for p in (tmp_path / "again" / "autoencoder.pt", path))
    if tied:  # saved twice
        theirs.pop("decoder.weight", None)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value) if isinstance(value, torch.Tensor) else mine[name] == value
    if not tied:
        state = torch.load(tmp_path / "again" / "autoencoder.pt", weights_only=True)
        state = {
            name: value for name, value in state.items() if not name.startswith("activation.")
        }  # its loader fails
        again = model.Autoencoder.from_state_dict(state)
        acts, info = again.encode(x)
        same(sae(x).x_hat, again.decode(acts, info))


@pytest.mark.parametrize("kind", ["TopK", "ReLU"])
def test_openai_formula(kind, x, tmp_path):
    """As its model has it: layer norm with TopK only, the unbiased standard deviation, 1e-5 added to it."""
    generator = torch.Generator().manual_seed(1)
    W_enc, W_dec, pre_bias, latent_bias = (
        scale * torch.randn(shape, generator=generator)
        for scale, shape in ((0.05, (D_SAE, 576)), (0.05, (576, D_SAE)), (0.5, 576), (0.5, D_SAE))
    )
    state = {
        "pre_bias": pre_bias,
        "encoder.weight": W_enc,
        "latent_bias": latent_bias,
        "decoder.weight": W_dec,
    }
    rows, mean, std = x, 0.0, 1.0
    if kind == "TopK":
        state |= {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        rows = (x - mean) / (std + 1e-5)
    pre = (rows - pre_bias) @ W_enc.T + latent_bias
    if kind == "TopK":
        top = pre.topk(K, dim=1)
        acts = torch.zeros_like(pre).scatter_(1, top.indices, top.values.relu())
    else:
        acts = pre.relu()
    torch.save(state, tmp_path / "0.pt")
    sae = SAE.from_pretrained(tmp_path / "0.pt")
    same(sae(x).x_hat, (acts @ W_dec.T + pre_bias) * std + mean)
    same_code(dense(sae, x), acts)


# from one project to another


def test_from_sparsify_to_the_others(x, tmp_path, learning, monkeypatch):
    import sae_lens

    coder = saved_coder(tmp_path, monkeypatch, k=K)
    want = coder(x).sae_out
    sae = SAE.from_pretrained(tmp_path / "layers.3")
    assert formats.save(sae, tmp_path / "lens", "sae_lens") == []
    same(sae_lens.SAE.load_from_disk(tmp_path / "lens", device="cpu")(x), want)
    assert formats.save(sae, tmp_path / "dl", "dictionary_learning") == []
    ae, _ = learning[1].load_dictionary(str(tmp_path / "dl"), device="cpu")
    same(ae(x), want)
    back = SAE.from_pretrained(tmp_path / "lens")
    formats.save(back, tmp_path / "back", "sparsify")
    assert torch.equal(type(coder).load_from_disk(Path(tmp_path / "back"))(x).sae_out, want)
