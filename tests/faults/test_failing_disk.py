"""A disk that is full, read-only, or breaks, at every single operation: one line, and what was whole stays whole."""

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

import saefast
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.errors import InputError
from tests.faults import scenarios
from tests.faults.looked import described, look_between, looked, recorded
from tests.faults.scenarios import SCENARIOS, Operations, in_child, result

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)


def fail_at_every_operation(name, out, every):
    """In a child, whose hooks end with it. The first operation of each `every` fails, the first time with the first error."""
    operations = Operations()
    operations.watch(out / "whole")
    SCENARIOS[name](out / "whole")
    n, want = operations.stop(), result(out / "whole")
    assert n > 20
    for at in range(1, n + 1, every):
        number, place = ERRORS[at // every % len(ERRORS)], out / "failing"
        place.mkdir()

        def fail(what, number=number, place=place):
            raise OSError(number, os.strerror(number), str(place))

        operations.watch(place, at, fail)
        try:
            SCENARIOS[name](place)
        except (OSError, InputError) as error:  # what the command line prints as one line
            said = str(error)
            assert str(place) in said and "\n" not in said, said
        operations.stop()
        for run in place.glob("*/checkpoint.safetensors"):
            saefast.files.load_tensors(run)  # whole
        look_between(place)
        SCENARIOS[name](place)
        assert result(place) == want, (at, operations.names[-1:])
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "name", ["train, tensor, native", "train, iterable, native", "cache", "sweep", "export", "look"]
)
def test_an_operation_on_a_file_that_fails_is_one_line_and_it_goes_on(tmp_path, name):
    (tmp_path / "whole").mkdir()
    every = {"cache": 5, "sweep": 34, "look": 37}.get(name, 11)  # and at every one: `pytest -m slow`
    assert in_child(lambda: fail_at_every_operation(name, tmp_path, every)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train, tensor, reference", "cache", "sweep", "export", "look"])
def test_every_operation_on_a_file_may_fail(tmp_path, name):
    (tmp_path / "whole").mkdir()
    assert in_child(lambda: fail_at_every_operation(name, tmp_path, 1)) == 0


def limited(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def fill(out, limit, before, name):
    """In a child: no file may be larger than the limit, which is what a full disk is to those that write."""
    looked(out / "whole")
    want, place = result(out / "whole"), out / "full"
    before(place)
    limited(limit)
    try:
        looked(place)
        raise AssertionError("was written")
    except (OSError, InputError) as error:
        assert str(place) in str(error) and name in str(error) and "\n" not in str(error), error
    assert not [path for path in place.rglob("*") if path.name.endswith(".tmp")]
    limited(resource.RLIM_INFINITY)
    look_between(place)
    looked(place)
    assert result(place) == want


@pytest.mark.parametrize(
    "limit, before, name",
    [
        pytest.param(1, Path.touch, "index.json", marks=pytest.mark.slow),
        (1200, Path.touch, "codes-00000.safetensors"),
        pytest.param(2000, Path.touch, "index.json", marks=pytest.mark.slow),
        (4000, Path.touch, "latents.parquet"),
        pytest.param(8000, Path.touch, "records", marks=pytest.mark.slow),
        pytest.param(1900, recorded, "effects.safetensors", marks=pytest.mark.slow),
        pytest.param(5000, recorded, "ablations.parquet", marks=pytest.mark.slow),
        (3400, described, "data/latents-0.js"),
        pytest.param(10_000, described, "assets/latent.js", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_under_records_and_pages_names_the_file_and_they_go_on(tmp_path, limit, before, name):
    for folder in ("whole", "full"):
        (tmp_path / folder).mkdir()
    assert in_child(lambda: fill(tmp_path, limit, before, name)) == 0


@pytest.mark.slow
def test_kills_of_a_few_seconds():
    from tests.faults.kills import campaign

    found = campaign(budget=8, seed=1)
    assert found["wrong"] == [] and found["kills"] > 0
    assert set(found["by_scenario"]) <= set(scenarios.SCENARIOS)


def test_no_shard_without_rows_is_written(tmp_path):
    """As when a cache goes on whose rows were all written already."""
    cache = ShardWriter(tmp_path / "cache", 16, torch.float32, shard_tokens=10)
    cache.append(torch.ones(10, 16))
    cache.append(torch.ones(0, 16))
    cache.close()
    assert [shard["n_tokens"] for shard in ShardSource(tmp_path / "cache").index["shards"]] == [10]
