"""The list of the strongest latents, and its text."""

import numpy as np
import pytest
import torch

from saefast import InputError
from saefast.interp.neurons import neurons
from saefast.interp.strongest import features_text, strongest, total_energy
from saefast.interp.vocabulary import Vocabulary
from tests.helpers import tiny_lm
from tests.helpers.small_records import small_records

SCALES = torch.tensor([3.0, 5.0, 0.0, 1.0, 5.0, 4.0])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    contexts = torch.randint(2, 64, (8, 20))
    x = torch.rand(160, 6) * (torch.rand(160, 6) < torch.tensor([0.2, 0.2, 0.5, 0.2, 0.2, 0.9])) * SCALES
    x[:, 4] = x[:, 1].roll(20)  # of the same energy as latent 1
    return x, small_records(tmp_path_factory.mktemp("strongest"), neurons(6), contexts, x)


def test_they_are_in_the_order_of_their_energy(made):
    x, records = made
    energy = x.double().square().sum(dim=0)
    found = strongest(records, n_examples=2, max_density=0.5)
    assert [one.latent for one in found] == [1, 4, 0, 3]  # 5 is too dense, 2 is never active
    np.testing.assert_allclose([one.energy for one in found], energy[[1, 4, 0, 3]])
    assert total_energy(records) == pytest.approx(float(energy.sum()))
    assert [one.latent for one in strongest(records, n_features=1, max_density=1.0)] == [5]
    for one in found:
        best = x[:, one.latent].view(8, 20).amax(dim=1).sort(descending=True).values[:2]
        assert [example.act for example in one.examples["top"]] == best.tolist()
        assert one.examples["random"] == records.latent(one.latent).examples["random"]


def test_as_text_each_example_is_a_line_with_its_token_in_brackets(made):
    records = made[1]
    text = features_text(strongest(records, 2, 1), Vocabulary(tiny_lm.tokenizer()), total_energy(records))
    assert text == ""  # each is active on more than 1 in 200 tokens
    found = strongest(records, 1, 1, max_density=0.5)
    lines = features_text(found, Vocabulary(tiny_lm.tokenizer()), total_energy(records)).split("\n")
    share, density = found[0].energy / total_energy(records), found[0].density
    assert lines[:2] == ["", f"latent 1: {share:.1%} of the energy, active on {density:.2%} of tokens"]
    best = found[0].examples["top"][0]
    token = records.text.contexts[best.context, best.position]
    act, example = lines[2].split(maxsplit=1)
    assert float(act) == pytest.approx(best.act, abs=0.06) and f"[{tiny_lm.WORDS[token]}]" in example


def test_a_negative_number_is_refused(made):
    with pytest.raises(InputError, match="n_features"):
        strongest(made[1], -1)
