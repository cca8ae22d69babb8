"""The next-step graph: against brute force, and planted automata that are recovered."""

import json

import numpy as np
import pytest
import torch

from saefast import InputError
from saefast.interp import together
from saefast.interp.automata import automata
from saefast.interp.next_steps import next_steps, raised_logits
from tests.helpers.planted_codes import planted, sparse

M, L, V = 14, 23, 17


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """A random code whose first tokens have no row, in documents that end with token 3."""
    r = np.random.default_rng(0)
    contexts = r.integers(0, V, (M, L))
    x = sparse((M, L, 9), 0.3, 1)
    x[..., 5] = 0
    x[:, 1:, 2] = np.where(x[:, :-1, 6] > 0, 1.5 * x[:, :-1, 6], x[:, 1:, 2])  # 6 leads to 2
    folder = tmp_path_factory.mktemp("random")
    records = planted(folder, x, contexts, left_out=1, separators=[3])
    logits = torch.randn(9, V, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    return records, logits, x, contexts


@pytest.mark.parametrize("cells", [20, 10**6])
def test_edges_are_those_of_brute_force(random, monkeypatch, cells):
    monkeypatch.setattr(together, "CELLS", cells)
    records, logits, x, contexts = random
    limits = {"min_count": 4, "min_follow": 0.25, "min_lift": 0.9}
    found, with_logits = next_steps(records, **limits), next_steps(records, logits, **limits)
    steps = [(m, s) for m in range(M) for s in range(1, L - 1) if contexts[m, s] != 3]
    before = np.array([x[m, s] for m, s in steps])
    after = np.array([x[m, s + 1] for m, s in steps])
    p = np.bincount(contexts[:, 1:].reshape(-1), minlength=V) / (M * (L - 1))
    rows = x[:, 1:].reshape(-1, 9)
    want = []
    for i in range(9):
        for j in range(9):
            n_i, both = (before[:, i] > 0).sum(), ((before[:, i] > 0) & (after[:, j] > 0)).sum()
            if both < 4 or both < 0.25 * n_i or both / n_i < 0.9 * (after[:, j] > 0).mean():
                continue
            follow = both / n_i
            mean = after[before[:, i] > 0, j].mean()
            together_ = ((rows[:, i] > 0) & (rows[:, j] > 0)).sum()
            overlap = together_ / min((rows[:, i] > 0).sum(), (rows[:, j] > 0).sum())
            share = np.bincount(contexts[:, 1:].reshape(-1), rows[:, j], V) / rows[:, j].sum()
            a_i = rows[rows[:, i] > 0, i].mean()
            raised = a_i * float(logits[i].double().numpy() @ (share - p))
            numbers = (follow, follow / (after[:, j] > 0).mean(), mean, after[:, j].mean(), overlap, raised)
            want.append((i, j, both, *numbers))
    assert 10 < len(want) < 64 and (6, 2) in [one[:2] for one in want]
    columns = [np.array(column) for column in zip(*want)]
    assert found.left.tolist() == columns[0].tolist() and found.right.tolist() == columns[1].tolist()
    assert found.n_steps.tolist() == columns[2].tolist()
    of_text = (found.follow, found.lift, found.expected, found.base, found.overlap)
    for got, column in zip(of_text, columns[3:-1], strict=True):
        np.testing.assert_allclose(got, column, rtol=1e-6)
    assert np.isnan(found.raised).all()
    up = columns[-1] > 0
    assert 0 < up.sum() < len(up)
    assert with_logits.left.tolist() == columns[0][up].tolist()
    np.testing.assert_allclose(with_logits.raised, columns[-1][up], rtol=1e-5, atol=1e-7)


def test_raised_is_the_first_order_change_of_the_next_activation(random):
    """Against a finite difference: logits log p + step * v of i, and a latent j that knows the token only."""
    records, logits, x, contexts = random
    tokens, rows = contexts[:, 1:].reshape(-1), x[:, 1:].reshape(-1, 9)
    p = np.bincount(tokens, minlength=V) / len(tokens)
    pairs = [(i, j) for i in range(9) for j in range(9) if 5 not in (i, j)]
    found = raised_logits(records, logits, *np.array(pairs).T)
    for (i, j), got in zip(pairs, found):
        given = np.bincount(tokens, rows[:, j], V) / np.bincount(tokens, minlength=V)  # E[f_j | token]
        step = 1e-6 * logits[i].double().numpy()
        changed = p * np.exp(step) / (p * np.exp(step)).sum()
        change = (changed - p) @ given / (p @ given) / 1e-6
        assert rows[rows[:, i] > 0, i].mean() * change == pytest.approx(got, rel=1e-3, abs=1e-5)
    assert raised_logits(records, logits, np.array([5, 0]), np.array([0, 5])).tolist() == [0, 0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Constants: "_" (token 1, latent 0) and words (2 to 9, latent 1) in turn. DNA: letters (10 to 13) at random, latent 2 and its
    twin 3. Markup: tokens 20, 21, 22 in turn, latents 4, 5, 6. Prose: tokens 30 to 49, latents 7 to 11."""
    r = np.random.default_rng(0)
    contexts, x = np.zeros((80, 40), int), np.zeros((80, 40, 12))
    for m in range(80):
        if m % 4 == 0:
            contexts[m] = np.where(np.arange(40) % 2, r.integers(2, 10, 40), 1)
            x[m, :, 0], x[m, :, 1] = contexts[m] == 1, contexts[m] > 1
        elif m % 4 == 1:
            contexts[m] = r.integers(10, 14, 40)
            x[m, :, 2] = x[m, :, 3] = 1
        elif m % 4 == 2:
            contexts[m] = 20 + np.arange(40) % 3
            x[m, np.arange(40), 4 + np.arange(40) % 3] = 1
        else:
            contexts[m] = r.integers(30, 50, 40)
            x[m, :, 7:] = sparse((40, 5), 0.2, m)
    x *= 1 + 0.1 * r.random(x.shape)
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(0)) * 0.1
    for latent, raised in (
        (0, range(2, 10)),
        (1, [1]),
        (2, range(10, 14)),
        (3, range(10, 14)),
        (4, [21]),
        (5, [22]),
        (6, [20]),
    ):
        logits[latent, list(raised)] += 2
    return planted(tmp_path_factory.mktemp("world"), x, contexts), logits


def test_planted_automata_are_recovered(world):
    records, logits = world
    found = automata(records, logits, min_follow=0.3, min_lift=3.0)
    assert [one.latents for one in found.loops] == [[2], [3]]
    assert [one.latents for one in found.pairs] == [[0, 1]] and [one.latents for one in found.longer] == [
        [4, 5, 6]
    ]
    (pair,), (longer,) = found.pairs, found.longer
    assert (
        pair.follow == [1, 1] and pair.strength == 1 and pair.n_steps == [400, 380] and min(pair.raised) > 1.5
    )
    assert pair.tokens[0].tokens == [1] and set(pair.tokens[1].tokens) <= set(range(2, 10))
    assert pair.tokens[1].effective == pytest.approx(8, rel=0.1) and not pair.is_of_contexts
    assert found.loops[0].is_of_contexts and longer.strength == 1
    described = json.loads(json.dumps(found.as_json()))
    assert described["n_loops"] == described["n_loops_of_contexts"] == 2
    assert (
        described["pairs"][0]["latents"] == [0, 1] and described["loops"][0]["tokens"][0]["effective"] > 3.5
    )


def test_without_the_rule_against_twins_they_are_a_cycle(world):
    records, logits = world
    found = automata(records, logits, min_follow=0.3, min_lift=3.0, most_alike=1.0)
    assert [2, 3] in [one.latents for one in found.pairs]


def test_edges_are_in_the_weights_and_in_the_text(world):
    records, logits = world
    changed = logits.clone()
    changed[0, 2:10] = -1  # "_" no longer raises words
    assert automata(records, changed, min_follow=0.3, min_lift=3.0).pairs == []
    assert [one.latents for one in automata(records, min_follow=0.3, min_lift=3.0).pairs] == [[0, 1]]
    assert automata(records, logits, min_follow=0.3, min_lift=3.0, longest=2).longer == []
    states = np.arange(12) != 1
    assert automata(records, logits, min_follow=0.3, min_lift=3.0, alive=states).pairs == []
    empty = automata(records, logits, min_count=10**6)
    assert empty.loops == empty.pairs == empty.longer == [] and empty.as_json()["edges"] == 0


def test_states_of_a_longer_cycle_are_all_apart(tmp_path):
    """Four states in turn; in one of two worlds the first and the third, which no edge joins, are active together elsewhere."""
    for together_, want in ((False, [[0, 1, 2, 3]]), (True, [])):
        contexts = np.tile(np.arange(40) % 4, (20, 1))
        x = np.zeros((20, 40, 5))
        x[:, np.arange(40), np.arange(40) % 4] = 1
        contexts[15:], x[15:] = 9, 0
        x[15:, ::3, 0] = x[15:, ::3, 2] = float(together_)
        found = automata(planted(tmp_path / str(together_), x, contexts), min_lift=2.0, min_follow=0.4)
        assert [one.latents for one in found.longer] == want


def test_what_is_refused(random):
    records, logits, *_ = random
    for options, message in [
        ({"logits": logits[:, :9]}, r"logits: expected \[9, V\] with V > 16"),
        ({"logits": logits[:4]}, r"logits: expected \[9, V\]"),
        ({"alive": np.ones(3, bool)}, r"alive: expected \[9\], got \[3\]"),
        ({"longest": 0}, "longest: expected 1 or more"),
        ({"min_count": 0}, "min_count: expected 1 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            automata(records, **({"min_follow": 0.01, "min_lift": 0.1} | options))
