"""Unsealing: when it is refused, and what is made of ratings."""

import json
import shutil

import numpy as np
import pytest

from saefast import InputError
from saefast.interp.blind import planted, read_page, status, unseal
from saefast.interp.blind.rubric import answered, points
from saefast.interp.blind.seal import opened, seal
from saefast.interp.blind.statistics import alpha, compared, summary
from tests.helpers.blind_deals import dealt, rated, rating


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"), 4)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deal") / "deal"
    dealt(made, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "deal")
    return tmp_path / "deal"


def refused(folder, files, message):
    with pytest.raises(InputError, match=message):
        unseal(folder, files)
    assert not (folder / "results.json").exists()


def test_a_card_that_is_not_rated_keeps_the_key_sealed(folder):
    first, second, *_ = (card["id"] for card in read_page(folder / "cards.html").cards)
    file = rated(folder, **{first: None, second: rating(tokens=None)})
    refused(folder, [file], "the key is opened when all cards are rated, missing are 2 of 8 by 'AB'")
    other = rated(folder, "CD", "other.json")
    refused(folder, [other, file], "missing are 2 of 8 by 'AB'")
    assert status(folder, [other, file]).rated == {"CD": 8, "AB": 6}
    refused(folder, [], "expected at least one file")


def test_edited_files_other_keys_and_other_pages_are_refused(folder, made, tmp_path):
    file = rated(folder)
    text = file.read_text()
    file.write_text(text.replace('"confidence": 1', '"confidence": 2', 1))
    refused(folder, [file], "ratings.json: edited or damaged")
    file.write_text(text.replace('"version": 1', '"version": 2'))
    refused(folder, [file], "expected a file of ratings")
    file.write_text("[1]")
    refused(folder, [file], "expected a file of ratings")

    dealt(made, tmp_path / "second", seed=2)
    refused(folder, [rated(tmp_path / "second")], "these ratings belong to another key")
    refused(
        folder, [rated(folder), rated(folder, name="b.json")], "expected one file of each rater, got AB, AB"
    )

    key = (folder / "key.json").read_bytes()
    seal(folder / "key.json", opened(folder / "key.json") | {"salt": "00"})
    refused(folder, [rated(folder)], "key.json: not the key that the page is committed to")
    (folder / "key.json").unlink()
    refused(folder, [rated(folder)], "key.json: expected the key of a deal, found none")
    (folder / "key.json").write_bytes(key)

    page = (folder / "cards.html").read_text()
    ids = [card["id"] for card in read_page(folder / "cards.html").cards[:2]]
    swapped = page.replace(ids[0], "x").replace(ids[1], ids[0]).replace('"x"', f'"{ids[1]}"')
    (folder / "cards.html").write_text(swapped)
    refused(folder, [rated(folder)], "cards.html: edited: these are not the cards of the key")


@pytest.mark.parametrize(
    "bad", [{"tokens": 6}, {"confidence": True}, {"sets": [1, 9]}, {"none": 0}, {"more": 1}]
)
def test_answers_that_the_page_cannot_give_are_refused(folder, bad):
    card = read_page(folder / "cards.html").cards[0]["id"]
    refused(folder, [rated(folder, **{card: rating() | bad})], f"card {card}: expected")


def test_ratings_are_joined_with_their_units(folder):
    key = opened(folder / "key.json")["cards"]
    good = rating(3, tokens=5, sets=[5, 2])  # 3 + 5 + 3 + 3: nothing is left to separate
    none = dict.fromkeys(good) | {"interpretation": "", "none": True, "sets": [None, None]}
    answers = {card: good if where["set"] == "features" else none for card, where in key.items()}
    results = unseal(folder, [rated(folder, **answers)])
    assert results == json.loads((folder / "results.json").read_text())
    features, neurons = (results["sets"][name] for name in ("features", "neurons"))
    assert features["units"]["median"] == features["units"]["mean"] == 14 and neurons["units"]["median"] == 0
    assert features["units"]["fairly_interpretable"] == 1 and features["borrowed"] == 0
    assert features["intervals"]["mean"] == (14 + 11) / 2 and features["intervals"]["values"] == 8
    of_units, of_intervals = results["comparisons"]
    assert (of_units["mean_difference"], of_units["rank_biserial"]) == (14, 1)
    assert of_units["permutation_p"] < 0.1 and of_intervals["mean_difference"] == 12.5
    for row in results["ratings"]:
        where = key[row["card"]]
        assert (row["set"], row["unit"]) == (where["set"], where["unit"])
        assert row["intervals"] == [i + 1 for i in where["intervals"]]
    for one in features["curve"]:
        here = [row for row in results["ratings"] if row["set"] == "features"]
        found = [
            p
            for row in here
            for i, p in zip(row["intervals"], row["interval_points"])
            if i == one["interval"]
        ]
        assert one["n"] == len(found) and (not found or one["points"] == np.mean(found))
    assert results["agreement"] is None


def test_several_raters_are_averaged_and_their_agreement_is_told(folder):
    cards = [card["id"] for card in read_page(folder / "cards.html").cards]
    first = {card: rating(i % 3, separated=0) for i, card in enumerate(cards)}
    results = unseal(folder, [rated(folder, **first), rated(folder, "CD", "c.json", **first)])
    assert set(results["agreement"].values()) == {1.0} and results["raters"] == ["AB", "CD"]
    assert len(results["ratings"]) == 16 and results["sets"]["features"]["units"]["units"] == 4
    second = rated(folder, "CD", "c.json", **{card: rating(2, separated=0) for card in cards})
    results = unseal(folder, [rated(folder, **first), second])
    values = np.asarray([[4 * (i % 3), 8] for i in range(8)])
    assert results["agreement"]["points"] == pytest.approx(alpha(values))


def test_points_are_those_of_the_rubric():
    assert points(rating(9)) == 14 and points(rating(9, logits=2)) == 14 and points(rating(0)) == 0
    assert points(rating(9, logits=2, separated=0)) == 13 and points(rating(9), 1) == 10
    assert points(rating(9, none=True), 5) == 0
    assert answered(rating(9, separated=None), 2, True) and not answered(rating(2, separated=None), 2, True)
    assert answered(rating(2, separated=None, logits=None), 2, False)
    assert not answered(rating(interpretation=" "), 2, True) and answered(
        rating(none=True, tokens=None), 2, True
    )
    assert not answered(rating(sets=[1]), 2, True) and not answered(rating(sets=[1, None]), 2, True)


def test_statistics_are_those_of_scipy_and_of_the_definition():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 15, 30).astype(float), rng.integers(0, 13, 25).astype(float)
    found = compared(a[:, None], b[:, None])
    pairs = np.sign(a[:, None] - b[None, :])
    assert found.rank_biserial == pytest.approx(pairs.mean())
    assert found.mean_difference == pytest.approx(a.mean() - b.mean())
    theirs = permutation_test((a, b), lambda x, y: x.mean() - y.mean(), n_resamples=4000, rng=1)
    assert found.permutation_p == pytest.approx(theirs.pvalue, abs=0.04)
    same = compared(np.ones((4, 2)), np.ones((4, 2)))
    assert same.permutation_p == same.mann_whitney_p == 1 and same.rank_biserial == 0
    # units that always agree with themselves: intervals add nothing to what is known
    once, thrice = summary(a[:, None]), summary(np.repeat(a[:, None], 3, axis=1))
    assert once.mean_interval == pytest.approx(thrice.mean_interval) and thrice.values == 90
    low, high = once.mean_interval
    assert (high - low) == pytest.approx(2 * 1.96 * a.std() / 30**0.5, rel=0.1)


def test_alpha_is_krippendorffs():
    values = np.asarray([[1, 2], [3, 3], [5, 4.0]])
    pooled = values.ravel()
    pairs = [(x - y) ** 2 for i, x in enumerate(pooled) for j, y in enumerate(pooled) if i != j]
    within = [(x - y) ** 2 for x, y in values]
    assert alpha(values) == pytest.approx(1 - np.mean(within) / np.mean(pairs))
    assert alpha(np.ones((3, 2))) is None and alpha(np.asarray([[1, 1], [2, 2.0]])) == 1
