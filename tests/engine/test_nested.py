"""Several reconstructions from one code: which entries each has, what it weighs, and which of them counts."""

import pytest
import torch

import saefast
from saefast.engine.code import Code
from saefast.engine.nested import by_part, part_of_entry
from saefast.engine.plan import Plan


def plan_of(k=2, activation="topk", sizes=(), **options):
    sae = saefast.SAEConfig(8, 80, activation, k=k, group_sizes=sizes)
    return Plan(sae, saefast.TrainConfig(total_tokens=1, **options), k, torch.float32)


def code_of(indices, acts):
    indices, acts = torch.tensor(indices, dtype=torch.int32), torch.tensor(acts)
    return Code(acts, indices, None, acts, acts)


@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 3.0)])
def test_prefixes_of_the_dictionary_begin_where_the_last_ends(weights):
    code = code_of([[0, 9, 10], [32, 33, 79]], [[1.0, 2, 3], [4, 5, 6]])
    part, got, counts = part_of_entry(code, plan_of(3, "matryoshka", (10, 33, 80), group_weights=weights))
    assert part.tolist() == [0, 0, 1, 1, 2, 2] and part.dtype == torch.int64
    assert got == (weights or (1.0, 1.0, 1.0)) and range(3)[counts] == 2  # the whole counts


def test_the_k_largest_and_those_of_smaller_index_among_equals():
    indices = [[7, 3, 5, 1], [7, 3, 5, 1], [4, 2, 6, 0]]
    code = code_of(indices, [[1.0, 4, 3, 2], [2, 2, 2, 2], [0, 0, 3, 0]])
    part, weights, counts = part_of_entry(code, plan_of(2, multi_topk=2, multi_topk_weight=0.25))
    assert part.view(3, 4).tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]]
    assert weights == (1.0, 0.25) and counts == 0
    assert part_of_entry(code, plan_of(2, multi_topk=2))[1] == (1.0, 1 / 8)


def test_entries_by_part_then_token():
    code = code_of([[5, 1], [7, 2], [3, 4]], [[1.0, 2], [3, 4], [5, 6]])
    got = by_part(code, torch.tensor([1, 0, 0, 0, 1, 1]), n_parts=2, n_tokens=3)
    assert got.acts.tolist() == got.listed.tolist() == got.pre_acts.tolist() == [2, 3, 4, 1, 5, 6]
    assert got.indices.tolist() == [1, 7, 2, 5, 3, 4]
    assert got.row_offsets.tolist() == [0, 1, 3, 3, 4, 4, 6] and got.row_offsets.dtype == torch.int32


def step(x, k, activation="topk", sae_options=None, only=None, **options):
    """Metrics of a step that changes no weight; only: latents beyond are never active."""
    sae = saefast.SAE(saefast.SAEConfig(24, 80, activation, k=k, **sae_options or {}), seed=3).double()
    sae.W_enc.data += 0.1 * torch.randn(80, 24, generator=torch.Generator().manual_seed(1))
    sae.b_enc.data[only:] = sae.b_enc.data[only:] - (0 if only is None else 1e6)
    fixed = {"total_tokens": 960, "batch_size": 96, "lr": 0.0, "normalize_input": False, "auxk_alpha": 0.0}
    trainer = saefast.Trainer(sae, saefast.TrainConfig(**fixed | {"backend": "reference"} | options))
    trainer.state.num_tokens_since_fired[::5] = 60
    return trainer.step(x)


@pytest.mark.parametrize("auxk", [False, True])
def test_with_multi_topk_the_reconstruction_from_k_counts(x64, auxk):
    aux = {"auxk_alpha": 0.5, "k_aux": 3, "dead_feature_threshold": 50} if auxk else {}
    one, four = step(x64, 4, **aux), step(x64, 16)
    both = step(x64, 4, multi_topk=4, multi_topk_weight=0.3, **aux)
    for name in ("fvu", "l0", "auxk_loss", "dead_frac"):
        assert float(getattr(both, name)) == pytest.approx(float(getattr(one, name)), rel=1e-9), name
    assert float(both.loss) == pytest.approx(float(one.loss) + 0.3 * float(four.fvu), rel=1e-9)
    assert abs(four.fvu - one.fvu) > 0.1 and (one.auxk_loss > 0) == auxk


@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 3.0)])
def test_of_a_matryoshka_sae_the_whole_counts_and_each_prefix_has_its_weight(x64, weights):
    """With k as large as the dictionary, a prefix is an SAE without the other latents."""
    got = step(x64, 80, "matryoshka", {"group_sizes": (10, 33, 80)}, group_weights=weights)
    prefixes = [float(step(x64, 80, only=size).fvu) for size in (10, 33, None)]
    assert float(got.fvu) == pytest.approx(prefixes[2], rel=1e-9)
    want = sum(weight * fvu for weight, fvu in zip(weights or (1, 1, 1), prefixes))
    assert float(got.loss) == pytest.approx(want, rel=1e-9)
    assert len({round(fvu, 3) for fvu in prefixes}) == 3
