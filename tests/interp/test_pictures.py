"""Pictures: labels that are read, nothing on top of anything else, files that are PNG."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saefast import InputError
from saefast.interp import pictures
from saefast.interp.atlas import Atlas
from saefast.interp.automata import Automata, Cycle
from saefast.interp.density import DensitySets
from saefast.interp.ladder_map import Cluster, LadderMap
from saefast.interp.next_steps import NextSteps
from saefast.interp.pictures import automata as automata_picture
from saefast.interp.pictures import families as families_picture
from saefast.interp.pictures import ladder_map as ladder_picture
from saefast.interp.pictures.drawing import token_label, tokens_label
from saefast.interp.splitting import Family, Member, Splitting, Step
from saefast.interp.top_tokens import TopTokens
from saefast.interp.universality import Matches, Universality

pytest.importorskip("matplotlib")


HARD = [b" the", "\u4e2d".encode(), "\u05d0\u05d1".encode(), b"\xe4\xb8", b"$x_1$", b"\n", b"\t\t"]
WORDS = SimpleNamespace(raw=HARD + [b" word%d" % i for i in range(23)])  # a vocabulary of 30 tokens


@pytest.fixture
def drawn(monkeypatch):
    """The figure of the last picture."""
    kept = []
    for module in (automata_picture, families_picture, ladder_picture):
        save = module.save
        monkeypatch.setattr(
            module, "save", lambda figure, path, save=save: (kept.append(figure), save(figure, path))[1]
        )
    return kept


def check_no_text_covers_another(figure):
    figure.canvas.draw()
    boxes = [t.get_window_extent() for axes in figure.axes for t in axes.texts if t.get_text()]
    assert len(boxes) > 3
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert not one.overlaps(other), (one, other)
        assert (
            figure.bbox.x0 <= one.x0
            and one.x1 <= figure.bbox.x1
            and figure.bbox.y0 <= one.y0
            and one.y1 <= figure.bbox.y1
        )


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_labels_of_tokens():
    assert (
        token_label(b" the") == "\u2423the"
        and token_label(b"\n") == "\\n"
        and token_label(b"$x_1$") == "$x_1$"
    )
    assert token_label("\u4e2d".encode()) == "<U+4E2D>" and token_label(b"\xe4\xb8") == "<E4><B8>"
    assert (
        token_label("\u05d0\u05d1".encode()) == "\u05d0\u05d1"
        and token_label("\u0301".encode()) == "<U+0301>"
    )
    assert (
        token_label(b"a" * 30) == "a" * 12 + "\u2026"
        and token_label("\u4e2d\u6587".encode(), 8) == "<U+4E2D>\u2026"
    )
    assert (
        tokens_label([0, 4, 5], WORDS) == "\u200e\u2423the  $x_1$  \\n"
        and tokens_label([0, 4], None) == "\u200e#0  #4"
    )
    assert tokens_label([7, 8, 9], WORDS, 14) == "\u200e\u2423word0  \u2423word1"


def family(seed, sizes):
    r = np.random.default_rng(seed)
    levels = [[Member(0, seed, None, None, 0.03, r.integers(0, 30, 4).tolist(), [0.2] * 4)]]
    for level, size in enumerate(sizes, 1):
        parents = sorted(r.integers(0, len(levels[-1]), size).tolist())
        levels.append(
            [
                Member(
                    level,
                    int(r.integers(0, 20000)),
                    p,
                    0.4 + 0.6 * r.random(),
                    0.01,
                    r.integers(0, 30, 4).tolist(),
                    [0.2] * 4,
                )
                for p in parents
            ]
        )
    return Family(levels, 0.7)


def test_families(tmp_path, drawn):
    path = pictures.draw_families(
        [family(1, (3, 9)), family(2, (2, 25)), family(3, (4, 5))], tmp_path / "f.png", WORDS
    )
    assert is_png(path)
    check_no_text_covers_another(drawn[-1])
    texts = [t.get_text() for t in drawn[-1].axes[0].texts]
    assert any(text.startswith("and ") and text.endswith(" more") for text in texts) and "A/2" in texts
    with pytest.raises(InputError, match="families: expected one or more"):
        pictures.draw_families([], tmp_path / "none.png")


def cycle(latents, effective=5.0):
    tokens = [
        TopTokens([latent % 30, 1, 2, 3, 4], [0.3, 0.2, 0.1, 0.1, 0.1], effective) for latent in latents
    ]
    n = len(latents)
    return Cycle(list(latents), [0.7] * n, [9.0] * n, [1.0] * n, [50] * n, 0.7, tokens)


@pytest.mark.parametrize("longest", [3, 4, 5])
def test_automata(tmp_path, drawn, longest):
    nothing = NextSteps(*(np.zeros(0) for _ in NextSteps._fields))
    found = Automata(
        nothing,
        [cycle([1], 1.0), cycle([2])],
        [cycle([3, 4]), cycle([4, 5])],
        [cycle(range(10, 10 + longest))],
    )
    path = pictures.draw_automata(found, tmp_path / "a.png", WORDS)
    assert is_png(path)
    check_no_text_covers_another(drawn[-1])
    chosen = automata_picture.distinct(found.loops, 4), automata_picture.distinct(found.pairs, 4)
    assert [[one.latents for one in some] for some in chosen] == [[[2], [1]], [[3, 4]]]
    with pytest.raises(InputError, match="found: expected a cycle"):
        pictures.draw_automata(Automata(nothing, [], [], []), tmp_path / "none.png")


def test_the_map(tmp_path, drawn):
    r = np.random.default_rng(0)
    places = r.normal(size=(60, 2)).astype(np.float32)
    places[5] = np.nan
    clusters = (np.arange(60) % 12).astype(np.int32)
    atlas = Atlas(torch.from_numpy(places), torch.from_numpy(clusters), torch.arange(60).int())
    found = LadderMap(atlas, np.repeat(np.arange(2, dtype=np.int32), [20, 40]), np.array([0, 20, 60]))
    step = Step(np.array([0, 5, 7], np.int32), np.array([1, 2, 30], np.int32), np.ones(3, np.float32))
    graph = Splitting([step], [np.ones(20), np.ones(40)], [np.ones(20, bool), np.ones(40, bool)])
    named = [Cluster(i, [(0, i), (1, i)], [i, i + 1, i + 2], [0.4, 0.3, 0.1]) for i in range(12)]
    assert is_png(pictures.draw_ladder_map(found, graph, tmp_path / "m.png", WORDS, clusters=named))
    check_no_text_covers_another(drawn[-1])
    lines = drawn[-1].axes[0].collections[0]
    assert len(lines.get_segments()) == 2  # 5 is nowhere


def test_histograms(tmp_path):
    counts = np.array([0, 1, 5, 300, 20])
    with np.errstate(divide="ignore"):
        statistics = np.stack([np.log10(counts / 1000), counts * 0.0, counts * 0.0], axis=1)
    low = np.array([False, True, False, False, False])
    sets = DensitySets(1000, counts, statistics, counts == 0, low, (counts > 0) & ~low, 2, "", 0.0, 5.0)
    assert is_png(pictures.draw_densities({"A/0": sets, "A/1": sets}, tmp_path / "d.png"))
    matches = Matches(
        np.zeros(5, np.int32), np.array([0.1, np.nan, 0.9, 0.5, 0.2], np.float32), np.zeros(5, np.float32)
    )
    whole = Universality(matches, matches.best / 10, 0.01, matches, matches, 0.4)
    some = whole._replace(logits=None, attribution=None)
    assert is_png(pictures.draw_similarities({"features": whole, "neurons": some}, tmp_path / "u.png"))
    assert is_png(pictures.draw_similarities({"neurons": some}, tmp_path / "v.png"))
    for draw in (pictures.draw_densities, pictures.draw_similarities):
        with pytest.raises(InputError, match="expected one"):
            draw({}, tmp_path / "none.png")
