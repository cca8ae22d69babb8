"""The shard format: what goes in comes out, interrupted writers go on, damage is named."""

import shutil

import pytest
import torch

from saefast import InputError, open_source
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.files import read_json_checked, write_json_checked

D, LENGTH = 4, 6  # width, tokens per context


def part(number, n_contexts=3):
    """Activations of three contexts with some rows dropped, as `cache` appends them."""
    generator = torch.Generator().manual_seed(number)
    contexts = torch.randint(0, 1000, (n_contexts, LENGTH), generator=generator)
    kept = (torch.rand(n_contexts * LENGTH, generator=generator) < 0.7).nonzero().squeeze(1)
    activations = torch.randn(len(kept), D, generator=generator)
    return activations, contexts, kept // LENGTH, kept % LENGTH


def writer(folder, **options):
    options = {
        "dtype": torch.float32,
        "model": "a model",
        "hook": "layers.1",
        "notes": {"text": "t"},
    } | options
    return ShardWriter(folder, D, shard_tokens=options.pop("shard_tokens", 30), **options)


def write(folder, n_parts=7, **options):
    cache = writer(folder, **options)
    for number in range(n_parts):
        cache.append(*part(number))
    cache.close()
    return ShardSource(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_in_the_stored_dtype_over_several_shards(tmp_path, dtype):
    source = write(tmp_path / "cache", dtype=dtype)
    want = torch.cat([part(number)[0] for number in range(7)]).to(dtype)
    assert len(source.index["shards"]) > 2 and len(source) == len(want) and source.d_in == D
    got = torch.cat(list(source))
    assert got.dtype == dtype and torch.equal(got, want)
    for start in (0, 1, 37, len(want) - 1, len(want)):
        rest = torch.cat([want[:0], *source.rows(start)])
        assert torch.equal(rest, want[start:]), start
    index = torch.randperm(len(want), generator=torch.Generator().manual_seed(0))
    assert torch.equal(source.take(index), want[index])


def test_index_says_what_the_folder_holds(tmp_path):
    source = write(tmp_path / "cache", dtype=torch.float16)
    index = read_json_checked(tmp_path / "cache" / "index.json")
    shards = index.pop("shards")
    assert index == {
        "format": "saefast-activations",
        "version": 1,
        "complete": True,
        "d_in": D,
        "dtype": "float16",
        "n_tokens": len(source),
        "model": "a model",
        "hook": "layers.1",
        "notes": {"text": "t"},
    }
    assert sum(shard["n_tokens"] for shard in shards) == len(source)
    assert sum(shard["n_contexts"] for shard in shards) == 7 * 3
    assert sorted(shard["file"] for shard in shards) == sorted(
        contents(tmp_path / "cache").keys() - {"index.json"}
    )
    for shard in shards:
        assert (
            shard["bytes"] == (tmp_path / "cache" / shard["file"]).stat().st_size
            and len(shard["sha256"]) == 64
        )
    assert source.describe() == {
        "type": "shards",
        "path": str(tmp_path / "cache"),
        "model": "a model",
        "hook": "layers.1",
        "n_tokens": len(source),
        "dtype": "float16",
        "notes": {"text": "t"},
    }


def test_every_row_finds_its_token_and_the_text_around_it(tmp_path):
    source = write(tmp_path / "cache")
    row = 0
    for number in range(7):
        activations, contexts, context, position = part(number)
        for i in range(len(activations)):
            tokens, place = source.context(row, before=2, after=1)
            text, at = contexts[context[i]].tolist(), int(position[i])
            assert tokens == text[max(0, at - 2) : at + 2] and tokens[place] == text[at]
            row += 1
    assert row == len(source)


def test_a_cache_without_text_has_rows_but_no_contexts(tmp_path):
    cache = ShardWriter(tmp_path / "cache", D, torch.float32)
    x = part(0)[0]
    cache.append(x)
    cache.close()
    source = open_source(tmp_path / "cache")
    assert torch.equal(torch.cat(list(source)), x)
    with pytest.raises(InputError, match="cache: expected a cache made from text, this one has no token ids"):
        source.context(0)


@pytest.mark.parametrize("done", [0, 1, 3, 5, 7])
def test_an_interrupted_writer_goes_on_to_identical_files(tmp_path, done):
    write(tmp_path / "whole")
    stopped = writer(tmp_path / "stopped")
    for number in range(done):
        stopped.append(*part(number))
    # a kill in the middle of a shard leaves its temporary, one before the index a shard that nobody listed
    n_shards = len(stopped.index["shards"])
    (tmp_path / "stopped" / f".shard-{n_shards:05d}.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "stopped" / f"shard-{n_shards:05d}.safetensors").write_bytes(b"not listed")
    with pytest.raises(InputError, match="this cache is incomplete; run `saefast cache` again to finish it"):
        ShardSource(tmp_path / "stopped")

    resumed = writer(tmp_path / "stopped")
    assert resumed.n_contexts % 3 == 0 and resumed.n_contexts <= 3 * done
    assert resumed.n_tokens == sum(len(part(number)[0]) for number in range(resumed.n_contexts // 3))
    for number in range(resumed.n_contexts // 3, 7):
        resumed.append(*part(number))
    resumed.close()
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_writer_killed_before_its_first_index_can_begin_again(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".index.json.tmp").write_text('{"form')
    assert len(write(tmp_path / "cache")) > 0


@pytest.mark.parametrize(
    "changed", [{"dtype": torch.float16}, {"model": "other"}, {"hook": "layers.2"}, {"notes": {}}], ids=str
)
def test_an_interrupted_cache_is_not_continued_with_other_settings(tmp_path, changed):
    stopped = writer(tmp_path / "cache")
    for number in range(4):
        stopped.append(*part(number))
    before = contents(tmp_path / "cache")
    with pytest.raises(InputError, match=f"^out: .*cache was begun with {next(iter(changed))} = "):
        writer(tmp_path / "cache", **changed)
    assert contents(tmp_path / "cache") == before and len(before) > 1


def test_a_cache_that_ended_before_its_first_shard_can_be_begun_with_other_settings(tmp_path):
    writer(tmp_path / "cache", model="misspelt").append(*part(0))
    assert write(tmp_path / "cache").index["model"] == "a model"


def test_a_finished_folder_and_one_with_other_files_are_refused(tmp_path):
    write(tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    before = contents(tmp_path / "cache")
    with pytest.raises(
        InputError, match="^out: expected a new folder, .*cache already holds a finished cache$"
    ):
        writer(tmp_path / "cache")
    with pytest.raises(InputError, match="^out: expected a new or empty folder, .*mine holds other files$"):
        writer(tmp_path / "mine")
    assert contents(tmp_path / "cache") == before and list(contents(tmp_path / "mine")) == ["thesis.tex"]


def test_the_writer_refuses_another_width_and_values_that_do_not_fit_the_dtype(tmp_path):
    cache = writer(tmp_path / "cache", dtype=torch.float16)
    with pytest.raises(InputError, match=r"^activations: expected \[n, 4\], got \[2, 5\]$"):
        cache.append(torch.ones(2, 5))
    x = torch.ones(5, D)
    x[1, 2], x[3, 0], x[4, 1] = 1e5, -1e6, float("nan")  # NaN was there before: not the writer's to judge
    with pytest.raises(InputError, match="^dtype: 2 rows overflow torch.float16; use bfloat16 or float32$"):
        cache.append(x)
    assert cache.n_tokens == 0


def damage_missing(path, others):
    path.unlink()


def damage_truncated(path, others):
    path.write_bytes(path.read_bytes()[:-1])


def damage_emptied(path, others):
    path.write_bytes(b"")


def damage_header_bit(path, others):
    data = bytearray(path.read_bytes())
    data[data.index(b'"position"') + 1] ^= 1
    path.write_bytes(data)


def damage_data_bit(path, others):
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)


def damage_swapped(path, others):
    shutil.copy(others / "shard-00001.safetensors", path)


@pytest.mark.parametrize(
    "damage,message",
    [
        (damage_missing, r"expected \d+ bytes, found no file"),
        (damage_truncated, r"expected (\d+) bytes, found \d+"),
        (damage_emptied, r"expected \d+ bytes, found 0"),
        (damage_header_bit, "corrupt"),
        (damage_data_bit, "corrupt: expected SHA-256 .*, got"),
        (damage_swapped, r"not the shard that index\.json lists"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_shard_is_named_by_every_way_to_read_it(tmp_path, damage, message):
    def full_parts(folder, seed):
        cache = writer(folder, shard_tokens=10)
        for number in range(3):
            generator = torch.Generator().manual_seed(seed + number)
            ids = torch.arange(10)
            cache.append(
                torch.randn(10, D, generator=generator), torch.zeros(2, LENGTH), ids % 2, ids % LENGTH
            )
        cache.close()

    full_parts(tmp_path / "cache", 0)
    full_parts(tmp_path / "others", 100)
    damage(tmp_path / "cache" / "shard-00001.safetensors", tmp_path / "others")
    message = rf"shard-00001\.safetensors: {message}"
    for read in (
        lambda source: list(source),
        lambda source: source.take(torch.tensor([12])),
        lambda source: source.context(12),
    ):
        with pytest.raises(InputError, match=message):
            read(ShardSource(tmp_path / "cache"))


def edited(folder, **changes):
    index = read_json_checked(folder / "index.json") | changes
    write_json_checked(folder / "index.json", {k: v for k, v in index.items() if v != "removed"})


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"version": 2},
        *({key: "removed"} for key in ("d_in", "dtype", "n_tokens", "shards", "complete")),
    ],
    ids=str,
)
def test_an_index_of_another_format_or_without_a_field_is_refused(tmp_path, changes):
    write(tmp_path / "cache")
    edited(tmp_path / "cache", **changes)
    for open_it in (ShardSource, writer):
        with pytest.raises(
            InputError, match=r"cache/index\.json: expected a saefast-activations index, version 1"
        ):
            open_it(tmp_path / "cache")


@pytest.mark.parametrize("changes", [{"d_in": 5}, {"dtype": "float16"}], ids=str)
def test_a_shard_that_does_not_fit_the_index_is_named(tmp_path, changes):
    write(tmp_path / "cache")
    edited(tmp_path / "cache", **changes)
    with pytest.raises(
        InputError, match=r"shard-00000\.safetensors: expected activations \[\d+, \d\] in torch\."
    ):
        list(ShardSource(tmp_path / "cache"))


def test_a_folder_without_an_index_and_an_empty_cache_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"index\.json: expected a JSON file, found none"):
        open_source(tmp_path)
    writer(tmp_path / "cache").close()
    with pytest.raises(InputError, match="cache: expected at least one activation, the cache is empty"):
        open_source(tmp_path / "cache")
