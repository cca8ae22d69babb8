"""What is dealt: cards of one shape, of examples that are in the text, with a key that nobody can read or change."""

import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from saefast import InputError
from saefast.interp.blind import BlindConfig, deal, planted, read_page
from saefast.interp.blind.cards import draw, whole_windows
from saefast.interp.blind.seal import opened
from saefast.interp.effects import EFFECTS
from saefast.interp.records import Records
from saefast.interp.records.text import Text
from tests.helpers import blind_deals
from tests.helpers.blind_deals import SMALL, dealt


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"), 6)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deal") / "new" / "deal"
    dealt(made, folder)
    return folder


def test_cards_have_one_shape_and_the_examples_are_in_their_intervals(made, folder):
    page, key = read_page(folder / "cards.html"), opened(folder / "key.json")
    assert len(page.cards) == len(key["cards"]) == 2 * SMALL.units
    assert sorted(one["set"] for one in key["cards"].values()) == ["features"] * 4 + ["neurons"] * 4
    sets = {"features": made.one_kind, "neurons": made.mixtures}
    text = [made.vocabulary.raw[i] for i in made.one_kind.text.contexts.ravel()]
    for card in page.cards:
        where = key["cards"][card["id"]]
        records = sets[where["set"]]
        assert np.shape(card["examples"]) == (10, 6) and np.shape(card["logits"]) == (6, 2)
        assert card.keys() == {"id", "examples", "logits", "sets"}
        slots, acts = records.entries(where["unit"])
        largest = acts[whole_windows(records.text, 3, 2)[slots]].max()
        contexts = []
        for i, window in enumerate(card["examples"]):
            raw = [page.tokens[token] for token in window]
            found = [j for j, slot in enumerate(slots) if text[slot - 3 : slot + 3] == raw]
            (at,) = [j for j in found if int(min(4, acts[j] / largest * 5)) == i // 2]
            contexts.append(slots[at] // 128)
        assert len(set(contexts)) == 10
        rated = [i * 2 + j for i in where["intervals"] for j in (0, 1)]
        assert [sorted(some) for some in card["sets"]] == np.reshape(rated, (2, 2)).tolist()
        assert where["own"] == [2] * 5


def test_logits_are_the_largest_and_their_sizes_relative(made, folder):
    from saefast.interp.effects import Effects

    page, key = read_page(folder / "cards.html"), opened(folder / "key.json")
    logits = Effects.load(made.one_kind.folder).logits
    for card in page.cards:
        where = key["cards"][card["id"]]
        if where["set"] == "features":
            values = logits.positive[where["unit"], :6]
            assert [size for _, size in card["logits"]] == (20 * values / values[0]).round().int().tolist()
            want = [made.vocabulary.raw[i] for i in logits.positive_tokens[where["unit"], :6].tolist()]
            assert [page.tokens[token] for token, _ in card["logits"]] == want


def test_the_commitment_is_the_checksum_of_the_key_and_the_page_says_nothing_of_it(made, folder):
    text, sealed = (folder / "cards.html").read_text(), (folder / "key.json").read_bytes()
    commitment = hashlib.sha256(sealed).hexdigest()
    assert read_page(folder / "cards.html").commitment == commitment and text.count(commitment) == 1
    key = opened(folder / "key.json")
    secrets = ["neurons", "features", 'intervals":[', key["salt"], made.one_kind.index["sae"]["digest"]]
    data = text[text.index("saefast.take(") : text.index("// What was rated")]
    assert not [one for one in secrets if one in data]
    assert not [one for one in ["neurons", "features", key["salt"]] if one in sealed.decode()]


def test_the_page_asks_for_nothing_outside_of_itself(folder):
    text = (folder / "cards.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(
        r"https?://(?!www\.w3\.org/2000/svg)|\bimport\b *[({\"']|\bfetch\(|@import|url\(", text
    )
    assert "default-src 'none'" in text and "unsafe" not in text


def test_the_same_seed_gives_the_same_files_and_none_gives_others(made, folder, tmp_path):
    names = ("cards.html", "key.json")
    dealt(made, tmp_path / "again")
    assert all((tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    first, second = (dealt(made, tmp_path / name, seed=None) for name in ("a", "b"))
    assert first.commitment != second.commitment
    assert opened(first.key)["seed"] != opened(second.key)["seed"]


def test_windows_stay_within_documents_and_rows():
    contexts = np.arange(16, dtype=np.int32).reshape(2, 8)
    encoded = np.ones((2, 8), bool)
    encoded[1, 4] = False
    found = whole_windows(Text(contexts, encoded, [3]), 2, 1)
    want = [slot for slot in range(16) if 2 <= slot % 8 <= 6 and 3 not in range(slot - 2, slot + 2)]
    assert found.nonzero()[0].tolist() == [slot for slot in want if slot != 12]
    assert not whole_windows(Text(contexts, encoded, []), 5, 3).any()


@pytest.mark.parametrize("borrow", [True, False])
def test_an_interval_with_too_few_examples_borrows_the_nearest_ones_or_the_unit_is_not_dealt(borrow):
    acts = np.asarray([1.0, 0.95, 0.3, 0.29, 0.28, 0.27, 0.26, 0.1], np.float32)
    config = BlindConfig(n_intervals=3, per_interval=2, borrow=borrow)
    found = draw(acts, np.arange(8), config, np.random.default_rng(0))
    if borrow:
        assert sorted(acts[found[1]].tolist()) == pytest.approx([0.29, 0.3])  # nearest to a half
        assert sorted(found[2].tolist()) == [0, 1] and set(found[0].tolist()) <= {4, 5, 6, 7}
    else:
        assert found is None
    one_context = np.zeros(8, np.int64)
    assert draw(acts, one_context, config, np.random.default_rng(0)) is None


def test_random_examples_are_uniform_within_an_interval():
    acts = np.linspace(0.01, 1, 60).astype(np.float32)
    config, counts = BlindConfig(n_intervals=2, per_interval=2, rated=0), np.zeros(60)
    rng = np.random.default_rng(0)
    for _ in range(1500):
        counts[draw(acts, np.arange(60), config, rng).ravel()] += 1
    assert abs(counts - 100).max() < 60  # of 100, 6 standard deviations


def test_what_cannot_be_dealt_is_refused_and_nothing_is_overwritten(made, folder, tmp_path):
    before = (folder / "key.json").read_bytes()
    with pytest.raises(InputError, match=r"out: expected a new folder.* has key.json and cards.html"):
        dealt(made, folder)
    assert (folder / "key.json").read_bytes() == before
    with pytest.raises(InputError, match="sets: expected at least two"):
        deal({"features": made.one_kind}, tmp_path / "a", made.vocabulary)
    with pytest.raises(InputError, match=r"features: expected 7 units .*, found 6: of 6 0 are dead, 0 have"):
        dealt(made, tmp_path / "b", replace(SMALL, units=7))
    with pytest.raises(InputError, match="n_logits: expected at most 10, which features has"):
        dealt(made, tmp_path / "c", replace(SMALL, n_logits=11))
    with pytest.raises(InputError, match="rated: expected at most n_intervals = 5, got 6"):
        replace(SMALL, rated=6)
    assert not list(tmp_path.iterdir())


def test_logits_are_shown_for_all_sets_or_for_none(made, tmp_path):
    copies = []
    for records in (made.one_kind, made.mixtures):
        copy = tmp_path / str(len(copies))
        copy.mkdir()
        for path in records.folder.iterdir():
            (copy / path.name).hardlink_to(path)
        copies.append(Records(copy))
    (tmp_path / "0" / EFFECTS).unlink()
    sets = dict(zip("ab", copies))
    with pytest.raises(InputError, match="a: expected logit weights beside the records, as the others"):
        deal(sets, tmp_path / "out", made.vocabulary, SMALL)
    (tmp_path / "1" / EFFECTS).unlink()
    deal(sets, tmp_path / "out", made.vocabulary, SMALL)
    page = read_page(tmp_path / "out/cards.html")
    assert not page.logits and {json.dumps(card["logits"]) for card in page.cards} == {"[]"}
    from saefast.interp.blind import unseal

    no_logits = blind_deals.rating(3, logits=None, separated=None)
    every = {card["id"]: no_logits for card in page.cards}
    results = unseal(tmp_path / "out", [blind_deals.rated(tmp_path / "out", **every)])
    assert results["most_points"] == 11 and {row["points"] for row in results["ratings"]} == {9}
