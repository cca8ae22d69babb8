"""A disk that fills up while a cache is written: one line of error, nothing half-written, and it goes on with room."""

import functools
import subprocess
import sys

import pytest
import torch

from saefast.activations import shards
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.errors import InputError
from saefast.files import write_json
from tests.helpers.tiny_world import CACHE, contents, run

LIMIT = """
import functools, resource, sys
from saefast import cli
from saefast.activations import shards
shards.ShardWriter = functools.partial(shards.ShardWriter, shard_tokens=int(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
cli.main(sys.argv[3:])
"""


@pytest.fixture
def disk(tmp_path):
    """A file system of 96 KiB, and a function that sets its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options, *what):
        command = ["mount", "-o", options, *what, str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    try:
        mounted = mount("size=96k", "-t", "tmpfs", "tmpfs")
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs leave to mount a file system")
    yield folder, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", "--lazy", folder], check=True)  # a source may have its shards mapped


def one_line(err):
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("saefast: error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_a_cache_on_a_full_disk_stops_in_one_line_and_goes_on_with_room(
    world, tmp_path, disk, monkeypatch, capsys
):
    folder, resize = disk
    monkeypatch.setattr(shards, "ShardWriter", functools.partial(shards.ShardWriter, shard_tokens=150))
    command = f"cache {world}/model {world}/text {CACHE} --tokens 3000 --out "
    run(f"{command}{tmp_path}/whole")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(f"{command}{folder}/acts")
    line = one_line(capsys.readouterr().err)
    assert stop.value.code == 2 and f"{folder}/acts" in line and "No space left on device" in line

    names = sorted(path.name for path in (folder / "acts").iterdir())
    assert "index.json" in names and not any(name.startswith(".") for name in names), names
    with pytest.raises(InputError, match="this cache is incomplete; run `saefast cache` again to finish it"):
        ShardSource(folder / "acts")
    assert resize("1m")
    run(f"{command}{folder}/acts")
    assert list(contents(folder / "acts").values()) == list(contents(tmp_path / "whole").values())


@pytest.mark.parametrize(
    "shard_tokens,limit",
    [(300, 20_000), pytest.param(20, 3_000, marks=pytest.mark.slow)],
    ids=["shard", "index"],
)
def test_a_limit_of_the_file_size_is_such_a_disk(world, tmp_path, shard_tokens, limit):
    """Where file systems cannot be mounted; the shard or the index is what does not fit."""
    command = f"cache {world}/model {world}/text {CACHE} --tokens 1000 --out {tmp_path}/acts".split()
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIMIT, str(shard_tokens), str(limit), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path}/acts" in one_line(done.stderr) and "File too large" in done.stderr
    assert not [path for path in (tmp_path / "acts").iterdir() if path.name.startswith(".")]
    if shard_tokens == 20:
        index = (tmp_path / "acts" / "index.json").read_text()
        assert index.rstrip().endswith("}") and len(index) <= limit


def test_the_writer_keeps_the_shards_that_were_written(tmp_path, disk):
    folder, resize = disk

    def write(out):
        writer = ShardWriter(out, 16, torch.float32, shard_tokens=256)  # 16 KiB
        for rows in torch.arange(16 * 2560.0).view(10, 256, 16)[len(writer.index["shards"]) :]:
            writer.append(rows)
        writer.close()

    write(tmp_path / "whole")
    with pytest.raises(OSError, match="acts.*No space left on device"):
        write(folder / "acts")
    kept = contents(folder / "acts")
    assert 2 < len(kept) < 8
    with pytest.raises(OSError, match="No space left on device.*full"):
        write_json(folder / "full", ["x" * 200_000])
    assert not (folder / ".full.tmp").exists()
    assert resize("1m")
    write(folder / "acts")
    assert list(contents(folder / "acts").values()) == list(contents(tmp_path / "whole").values())
    whole = ShardSource(folder / "acts")
    assert torch.equal(torch.cat(list(whole)), torch.arange(16 * 2560.0).view(2560, 16))
