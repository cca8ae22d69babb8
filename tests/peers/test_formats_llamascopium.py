"""llamascopium's files beside its own code, on real activations; it has an environment of its own."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from saefast import SAE, SAEConfig, formats
from tests.peers.format_checks import D_SAE, K, dense, same, same_code, scramble, there_and_back

pytest.importorskip("llamascopium")

from llamascopium.models.sae import SAEConfig as Config
from llamascopium.models.sae import SparseAutoEncoder

HOOK = "blocks.12.hook_resid_post"


def model(**options):
    settings = {
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "d_model": 576,
        "expansion_factor": D_SAE / 576,
        "top_k": K,
    }
    settings |= {"dtype": torch.float32, "device": "cpu", "norm_activation": "inference"}
    sae = SparseAutoEncoder(Config(**settings | options))
    scramble(sae, threshold=lambda noise: 0.2 * noise - 1)  # its logarithm
    if options.get("norm_activation") == "dataset-wise":
        norms = {HOOK: 17.3, "out": 5.1} if "hook_point_out" in options else {HOOK: 17.3}
        sae.set_dataset_average_activation_norm(norms)
    return sae


def saved(sae, folder):
    sae.save_pretrained(folder)
    sae.cfg.save_hyperparameters(folder)
    return folder


def output(sae, x):
    """As its own evaluation does it: normalise, encode, decode, back."""
    batch, factors = sae.normalize_activations({HOOK: x}, return_scale_factor=True)
    acts = sae.encode(batch[HOOK])
    out = sae.cfg.hook_point_out
    factor = factors[HOOK] if out == HOOK else sae.compute_norm_factor(x, out)
    return acts, sae.decode(acts) / factor


CASES = [
    {"act_fn": act, "norm_activation": norm, "sparsity_include_decoder_norm": with_norm}
    for act in ("relu", "topk", "jumprelu")
    for norm in ("inference", "token-wise", "dataset-wise")
    for with_norm in (True, False)
] + [
    {"act_fn": "topk", "use_decoder_bias": False},
    {"act_fn": "topk", "hook_point_out": "out"},
    {"act_fn": "jumprelu", "hook_point_out": "out", "norm_activation": "dataset-wise"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(f"{v}" for v in options.values()))
def test_llamascopium(options, x, tmp_path):
    theirs = model(**options)
    saved(theirs, tmp_path / "theirs")
    if options.get("norm_activation") != "dataset-wise":  # they save uninitialised memory there
        path = tmp_path / "theirs" / "sae_weights.safetensors"
        clean = {n: torch.ones(()) if "average" in n else t for n, t in load_file(path).items()}
        save_file(clean, path)
    sae = there_and_back(tmp_path / "theirs", tmp_path, "llamascopium")
    theirs = SparseAutoEncoder.from_pretrained(str(tmp_path / "theirs"))  # the norm is fp32 in the file
    acts, x_hat = output(theirs, x)
    same(sae(x).x_hat, x_hat)
    same_code(dense(sae, x), acts)
    again = SparseAutoEncoder.from_pretrained(str(tmp_path / "again"))
    assert torch.equal(output(again, x)[1], x_hat)
    # folded into the weights, for a library that knows no such scale
    if options.get("norm_activation", "inference") != "token-wise":
        plain = formats.folded(sae)
        same(plain(x).x_hat, x_hat)


OURS = [{"activation": "jumprelu"}, {"k": K}, {"activation": "relu"}, {"activation": "batch_topk", "k": K}]


@pytest.mark.parametrize("options", OURS, ids=lambda options: options.get("activation", "topk"))
def test_ours_as_theirs(options, x, tmp_path):
    """Trained here, with b_dec subtracted: folded, and read by them."""
    sae = SAE(SAEConfig(576, D_SAE, **options))
    scramble(sae, threshold=lambda noise: 0.5 + 0.1 * noise.abs())
    assert formats.save(sae, tmp_path / "theirs", "llamascopium")
    theirs = SparseAutoEncoder.from_pretrained(str(tmp_path / "theirs"))
    assert theirs.cfg.d_sae == D_SAE
    hook = theirs.cfg.hook_point_in
    acts = theirs.encode(theirs.normalize_activations({hook: x})[hook])
    same(sae(x).x_hat, theirs.decode(acts))
    same_code(dense(sae, x), acts)


def test_their_scale_is_the_one_of_the_file(x, tmp_path):
    theirs = model(act_fn="topk", norm_activation="dataset-wise")
    sae = SAE.from_pretrained(saved(theirs, tmp_path / "theirs"))
    assert sae.config.scales[0] == pytest.approx(math.sqrt(576) / 17.3, rel=1e-6)
