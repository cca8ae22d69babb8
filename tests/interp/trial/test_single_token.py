"""Units whose strongest examples are one token."""

import pytest
import torch

from saefast.errors import InputError
from saefast.interp.neurons import neurons
from saefast.interp.trial import Places, single_token
from tests.helpers.small_records import small_records
from tests.helpers.trial_cases import planted


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Tokens 0 to 9 in turn, contexts of 30; unit 0 is strong on 3, weak on all of 7; unit 1 is strong on 3 and once a little more on 4; unit 2
    on 5, but each time token 6 after it is a little stronger; unit 3 is strong once; unit 4 at the very end of contexts only; unit 5
    is strong on 5 once, and weaker on 1, 2, 5."""
    contexts = torch.arange(600, dtype=torch.int32).view(20, 30) % 10
    token = contexts.flatten()
    x = torch.zeros(600, 7)
    x[token == 3, 0], x[token == 7, 0] = 2.0, 0.5
    x[token == 3, 1] = 2.0
    x[14, 1] = 2.01
    x[token == 5, 2], x[token == 6, 2] = 1.96, 2.0
    x[100, 3] = 1.0
    x[29::30, 4] = 1.0
    x[35, 5] = 2.0
    for i, slot in enumerate((41, 71, 72, 101, 131, 165)):  # 72 is too near, 165 the sixth
        x[slot, 5] = 1 - 0.1 * i
    return small_records(tmp_path_factory.mktemp("single"), neurons(7), contexts, x)


@pytest.fixture(scope="module")
def places(written):
    return Places(written.text, written.config, None)


def test_by_hand(written, places):
    assert single_token(places, written, 0) == (True, 3, 1.0, 20)
    mixed = single_token(
        places, written, 1, n=60
    )  # all of the 41 there are that are no nearer than 9 to another
    assert not mixed.is_single and mixed.token == 3 and 0.95 < mixed.share < 1
    assert single_token(places, written, 2)[:2] == (
        True,
        6,
    )  # the maximal token of the window, not that in its middle
    assert single_token(places, written, 3) == (True, 0, 1.0, 1)
    few = single_token(places, written, 5)  # once 2, and then the strongest of those below
    assert few == (False, 1, 0.6, 5)
    assert single_token(places, written, 4) == (False, -1, 0.0, 0)  # no whole window
    with pytest.raises(InputError, match="latent 6 of .* is not"):
        single_token(places, written, 6)


def test_planted_units(tmp_path):
    ground = planted(tmp_path)
    places = Places(ground.records.text, ground.records.config, None)
    found = [single_token(places, ground.records, latent) for latent in range(ground.records.d_sae)]
    for kind, one in zip(ground.kinds, found, strict=True):
        if kind == "single token":
            assert one.is_single
        if kind in ("token class", "script", "run", "noise"):
            assert not one.is_single, (kind, one)
