"""What a format of another project cannot say is folded into the weights, and the SAE computes the same."""

import pytest
import torch

from saefast import SAE, InputError, TrainConfig, Trainer, formats
from saefast.formats.folding import Folding
from tests.helpers.format_cases import D_SAE, GATED, JUMP, NESTED, TRANSCODER, label, make, rows

# what has to be folded: the same function
FOLDED = [
    ("sae_lens", {"activation": "batch_topk", "k": 3}),
    ("sae_lens", {"activation": "batch_topk", "k": 3, "scale_by_norm": True}),
    ("sae_lens", NESTED),
    ("sae_lens", JUMP | {"scale_by_norm": True}),
    ("sae_lens", {"k": 3, "input_norm": "scale", "scales": (2.5, 2.5)}),
    ("sparsify", {"k": 3, "scale_by_norm": True}),
    ("sparsify", {"k": 3, "pre_bias": False}),
    ("sparsify", {"k": 3, "scale_by_norm": True, "input_norm": "scale", "scales": (0.3, 0.3)}),
    ("sparsify", {"k": 3, "input_norm": "scale", "scales": (0.3, 1.7)} | TRANSCODER),
    ("sparsify", {"k": 3, "skip": True, "input_norm": "scale", "scales": (0.3, 1.7)} | TRANSCODER),
    ("dictionary_learning", {"k": 3, "scale_by_norm": True}),
    ("dictionary_learning", {"k": 3} | TRANSCODER),
    ("dictionary_learning", JUMP | {"scale_by_norm": True}),
    ("dictionary_learning", GATED | {"pre_bias": False}),
    ("dictionary_learning", NESTED | {"scale_by_norm": True, "pre_bias": False}),
    ("openai", {"k": 3, "input_norm": "layer_norm", "scale_by_norm": True, "pre_bias": False}),
    ("gemma_scope", {"activation": "relu"}),
    ("gemma_scope", NESTED | {"scale_by_norm": True}),
    ("gemma_scope", JUMP | {"scale_by_norm": True, "input_norm": "scale", "scales": (2.0, 2.0)}),
    ("llamascopium", {"k": 3}),
    ("llamascopium", JUMP | {"scale_by_norm": True}),
    ("llamascopium", {"activation": "batch_topk", "k": 3, "scale_by_norm": True}),
    ("llamascopium", {"k": 3, "input_norm": "scale", "scales": (0.7, 0.7), "pre_bias": False}),
]


def dense(sae, x):
    acts, indices = sae.encode(x)
    return torch.zeros(len(x), sae.config.d_sae).scatter_(1, indices.long(), acts)


@pytest.mark.parametrize("case", FOLDED, ids=label)
def test_what_is_folded_computes_the_same(case, tmp_path):
    format, options = case
    sae, x = make(options), rows()
    notes = formats.save(sae, tmp_path / "theirs", format)
    assert notes
    back = SAE.from_pretrained(tmp_path / "theirs")
    want, got = sae(x, target=None).x_hat, back(x).x_hat
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    same = (dense(sae, x) > 0) == (dense(back, x) > 0)
    assert same.all()
    l0 = (dense(sae, x) > 0).sum(dim=1)
    assert l0.min() < D_SAE and l0.max() > 0


def test_folded_can_be_trained_and_computes_the_same():
    sae, x = make(JUMP | {"scale_by_norm": True, "input_norm": "scale", "scales": (2.0, 2.0)}), rows()
    plain = formats.folded(sae)
    torch.testing.assert_close(plain(x).x_hat, sae(x).x_hat)
    Trainer(plain, TrainConfig(total_tokens=64, batch_size=64, unit_norm=False)).step(x)
    with pytest.raises(InputError, match="no normalisation of each row"):
        formats.folded(make({"k": 3, "input_norm": "layer_norm"}))


def test_a_fold_does_not_touch_the_sae():
    sae = make({"k": 3, "scale_by_norm": True, "input_norm": "scale", "scales": (2.0, 2.0)})
    kept = {name: param.clone() for name, param in sae.named_parameters()}
    fold = Folding(sae, "test")
    fold.unscaled()
    fold.centred(False)
    assert fold.notes and all(torch.equal(kept[name], param) for name, param in sae.named_parameters())
