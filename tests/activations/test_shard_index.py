"""The index of a shard folder: what each entry may be, what it counts, and the sizes that nobody named."""

import copy

import pytest
import torch

from saefast.activations.shards import ShardSource, ShardWriter, well_formed
from saefast.files import read_json_checked

SHARD = {"file": "shard-00000.safetensors", "n_tokens": 3, "n_contexts": 0, "bytes": 96, "sha256": "ab"}
INDEX = {
    "format": "saefast-activations",
    "version": 1,
    "complete": True,
    "d_in": 4,
    "dtype": "float16",
    "n_tokens": 3,
    "model": None,
    "hook": "layers.1",
    "notes": {},
    "shards": [SHARD],
}
NO_COUNT = [True, -1, 1.0, 2**63, None, "3", [3]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"d_in": 0},
        {"d_in": 2**63 - 1},
        {"complete": False},
        {"hook": None},
        {"hook": ["a", None], "widths": [1, 3]},
        {"dtype": "bfloat16"},
        {"n_tokens": 0, "shards": []},
        {"n_tokens": 6, "shards": [SHARD, SHARD | {"n_contexts": 2}]},
    ],
    ids=str,
)
def test_an_index_of_ours_is_well_formed(changes):
    assert well_formed(INDEX | changes)


@pytest.mark.parametrize(
    "name,values",
    [
        ("d_in", NO_COUNT),
        ("n_tokens", [*NO_COUNT, 2, 4]),
        ("complete", [1, None, "true"]),
        ("notes", [[], None, "text"]),
        ("hook", [1, ["a", 1], {"a": 1}, True]),
        ("widths", [4, None, "4", {}, [True], [1.0], [None]]),
        ("dtype", ["nothing", "Tensor", "zeros", 3, None, ["float16"]]),
        ("shards", [None, {}, "", 0, [1], [{}], [SHARD, None]]),
    ],
)
def test_an_entry_of_another_kind_is_not(name, values):
    for value in values:
        assert not well_formed(INDEX | {name: value}), value


@pytest.mark.parametrize(
    "name,values",
    [
        ("n_tokens", NO_COUNT),
        ("n_contexts", NO_COUNT),
        ("bytes", NO_COUNT),
        ("file", ["../other", "a/b", "/etc/passwd", 3, None]),
        ("sha256", [3, None, ["ab"]]),
    ],
)
def test_an_entry_of_a_shard_of_another_kind_is_not(name, values):
    for value in values:
        index = copy.deepcopy(INDEX)
        index["shards"].append(SHARD | {name: value})
        index["n_tokens"] += value if name == "n_tokens" and isinstance(value, int) else 3
        assert not well_formed(index), value


def test_rows_count_from_the_moment_they_are_given_and_contexts_when_they_are_on_disk(tmp_path):
    cache = ShardWriter(tmp_path / "cache", 2, torch.float32, shard_tokens=5)
    ids = torch.arange(3)
    counted = []
    for _ in range(4):
        cache.append(torch.ones(3, 2), torch.zeros(2, 3), ids % 2, ids)
        counted.append((cache.n_tokens, cache.n_contexts, cache.index["n_tokens"]))
    assert counted == [(3, 0, 0), (6, 4, 6), (9, 4, 6), (12, 8, 12)]


def test_a_shard_is_written_when_it_has_its_rows_and_has_65_536_of_them(tmp_path):
    cache = ShardWriter(tmp_path / "cache", 1)
    for n, shards in ((65_535, []), (1, [65_536]), (70_000, [65_536, 70_000]), (1, [65_536, 70_000])):
        cache.append(torch.zeros(n, 1))
        assert [shard["n_tokens"] for shard in cache.index["shards"]] == shards
    cache.close()
    index = read_json_checked(tmp_path / "cache" / "index.json")
    assert index["n_tokens"] == 135_537 and index["dtype"] == "float16" and index["notes"] == {}
    assert [len(piece) for piece in ShardSource(tmp_path / "cache").rows(65_536)] == [70_000, 1]
    assert [len(piece) for piece in ShardSource(tmp_path / "cache").rows(65_535)] == [1, 70_000, 1]


def test_a_cache_may_end_at_the_end_of_a_shard(tmp_path):
    cache = ShardWriter(tmp_path / "cache", 2, torch.float32, shard_tokens=3)
    cache.append(torch.ones(3, 2))
    cache.append(torch.ones(0, 2))  # a batch of which every row was dropped
    cache.close()
    source = ShardSource(tmp_path / "cache")
    assert len(source) == 3 and len(source.index["shards"]) == 1


def test_the_text_around_a_row_is_20_tokens_before_and_5_after(tmp_path):
    cache = ShardWriter(tmp_path / "cache", 2, torch.float32)
    place = torch.arange(40)
    cache.append(torch.ones(40, 2), place[None] + 100, torch.zeros(40), place)
    cache.close()
    source = ShardSource(tmp_path / "cache")
    assert source.context(30) == (list(range(110, 136)), 20)
    assert source.context(3) == (list(range(100, 109)), 3)
    assert source.context(39) == (list(range(119, 140)), 20)


def test_a_cache_may_have_one_row(tmp_path):
    cache = ShardWriter(tmp_path / "cache", 2, torch.float32)
    cache.append(torch.ones(1, 2))
    cache.close()
    source = ShardSource(tmp_path / "cache")
    assert len(source) == 1
    assert source.random_access  # so that the state of a buffer needs no rows
