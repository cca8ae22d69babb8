"""What a study refuses before it begins, and what it goes on with. All of it runs at the scale ci in .ci/run."""

from itertools import pairwise

import pytest

from saefast.errors import InputError
from saefast.study.run import Monosemanticity
from saefast.study.scales import SCALES
from saefast.study.training import ladder, others, share_of


def test_an_unknown_scale_is_named(tmp_path):
    with pytest.raises(InputError, match=r"scale: expected one of \['ci', 'laptop', 'gpu'\], got 'huge'"):
        Monosemanticity(tmp_path / "out", "huge")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"model": "gpt2"}, {"hook": "transformer.h.0.mlp"}], ids=str)
def test_a_model_and_a_hook_go_together(tmp_path, given):
    with pytest.raises(InputError, match="hook: expected with --model, and only then"):
        Monosemanticity(tmp_path / "out", "ci", **given)


def test_a_folder_goes_on_with_its_own_scale_only(tmp_path):
    Monosemanticity(tmp_path / "out", "ci")
    assert Monosemanticity(tmp_path / "out", "ci").results() == {}
    with pytest.raises(InputError, match="holds a study of scale 'ci'"):
        Monosemanticity(tmp_path / "out", "laptop")


def test_too_little_text_is_said_before_anything_is_trained(tmp_path):
    (tmp_path / "own.txt").write_text("Once upon a time there was a river. " * 40)
    study = Monosemanticity(tmp_path / "out", "ci", text=tmp_path / "own.txt")
    with pytest.raises(InputError, match="text: the scale ci needs"):
        study.run(say=lambda line: None)
    assert study.results() == {} and not (tmp_path / "out" / "subjects").exists()


def test_scales_grow():
    sizes = [vars(SCALES[name]) for name in ("ci", "laptop", "gpu")]
    for small, large in pairwise(sizes):
        counted = [name for name in small if name not in ("name", "schedule", "pace")]
        smaller = [name for name in counted if small[name] > large[name]]
        assert smaller == []


def test_a_slow_machine_has_fewer_tokens_for_dictionaries_and_the_same_subjects(tmp_path):
    assert share_of([25_000.0, 12_000.0], 20_000) == 0.6 and share_of([None, 10.0], 0) == 1.0
    assert share_of([None, None], 20_000) == 1.0
    world = Monosemanticity(tmp_path / "out", "laptop").world
    world.folder.run("subjects", lambda: {"share": 0.5})
    full, half = SCALES["laptop"], world.sizes
    assert half.subject_tokens == full.subject_tokens and half.units == full.units
    assert [2 * tokens for tokens in half.dictionary_tokens] == list(full.dictionary_tokens)
    assert [one.tokens for one in ladder(world)] == list(half.dictionary_tokens)
    assert {2 * one.tokens for one in others(world)} == {full.other_tokens, full.resample_tokens}
