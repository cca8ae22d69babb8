"""Shard folders of several hook points: what the index says of their columns."""

import pytest
import torch

from saefast import InputError
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.files import read_json_checked, write_json_checked


def write(folder, d_in, hook, n_parts=3, **options):
    cache = ShardWriter(folder, d_in, torch.float32, "m", hook, shard_tokens=5, **options)
    for number in range(n_parts):
        cache.append(torch.full((4, 4), float(number)))
    return cache


def test_several_hook_points_are_recorded_with_their_widths(tmp_path):
    write(tmp_path / "cache", [1, 3], ["a", "b:in"])
    with pytest.raises(InputError, match=r"was begun with widths = \[1, 3\], got \[2, 2\]$"):
        write(tmp_path / "cache", [2, 2], ["a", "b:in"])
    with pytest.raises(InputError, match=r"was begun with hook = \['a', 'b:in'\], got a$"):
        write(tmp_path / "cache", 4, "a")
    write(tmp_path / "cache", [1, 3], ["a", "b:in"], n_parts=1).close()
    source = ShardSource(tmp_path / "cache")
    assert (source.hooks, source.widths, source.d_in, len(source)) == (["a", "b:in"], [1, 3], 4, 12)
    found = source.describe()
    assert found["hook"] == source.index["hook"] == ["a", "b:in"] and found["widths"] == [1, 3]


@pytest.mark.parametrize("hook,d_in", [("a", 4), (["a"], [4]), (None, 4)])
def test_one_hook_point_is_recorded_as_ever(tmp_path, hook, d_in):
    write(tmp_path / "cache", d_in, hook).close()
    source = ShardSource(tmp_path / "cache")
    name = "a" if hook else None
    assert source.index["hook"] == name and source.index["d_in"] == 4 and "widths" not in source.index
    assert (source.hooks, source.widths, "widths" in source.describe()) == ([name], [4], False)


@pytest.mark.parametrize("widths", [[1, 2], [4], [5, -1], [4, 0], [1, 2, 1], []], ids=str)
def test_widths_that_do_not_fit_the_hook_points_are_refused(tmp_path, widths):
    write(tmp_path / "cache", [1, 3], ["a", "b"]).close()
    path = tmp_path / "cache" / "index.json"
    write_json_checked(path, read_json_checked(path) | {"widths": widths})
    want = r"expected widths of the hook points \['a', 'b'\], 2 positive numbers that add up to d_in = "
    with pytest.raises(InputError, match=f"index.json: {want}4, got "):
        ShardSource(tmp_path / "cache")
    if widths != [1, 2]:  # a writer takes their sum for d_in
        with pytest.raises(InputError, match=f"^d_in: {want}"):
            ShardWriter(tmp_path / "new", widths, hook=["a", "b"])
        assert not (tmp_path / "new").exists()
