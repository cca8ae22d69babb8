"""A bit that flips in a folder of records is named, whatever file it is in, before it can show something else."""

import json
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from saefast import InputError
from saefast.cli.info import describe
from saefast.interp.effects import ABLATIONS, Effects, read_ablations
from saefast.interp.records import Records, codes
from tests.faults.looked import described, read, recorded
from tests.helpers.tiny_world import run

FILES = [
    "ablations.parquet",
    "codes-00001.safetensors",
    "effects.safetensors",
    "examples.parquet",
    "index.json",
]
FILES += ["latents.parquet", "text-00002.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return described(tmp_path_factory.mktemp("described") / "of").folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "records")


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_named(folder, name):
    want, path, rng = describe(folder), folder / name, random.Random(name)
    data, refused = path.read_bytes(), 0
    bits = rng.sample(range(8 * len(data)), 24) + [8 * len(data) - 8 * n - 1 for n in (1, 9, 90)]
    for bit in bits:
        flip(path, bit)
        try:
            found = describe(folder)
            assert found == want and name in ("index.json", "ablations.parquet"), (name, bit)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error), error
            refused += 1
        path.write_bytes(data)
    assert refused > (12 if name in ("index.json", "ablations.parquet") else 26)


@pytest.mark.parametrize("name", ["latents.parquet", "examples.parquet", "text-00000.safetensors"])
def test_what_is_read_at_once_is_checked_without_being_asked(folder, name):
    flip(folder / name, 8 * 100 + 3)
    with pytest.raises(InputError, match=f"{name}: corrupt"):
        Records(folder).latent(5)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: expected a file, found none"):
        Records(folder).latent(5)


@pytest.mark.parametrize(
    "name, bit", [("acts", 31), ("acts", 30), ("slots", 31), ("slots", 12), ("offsets", 2)]
)
def test_activations_that_cannot_be_are_not_given(folder, name, bit):
    """As of a bit that flipped after the files were checked: of the code only what is used is read."""
    block = Records(folder).blocks[0]
    array = getattr(block, name)
    latent = 7
    i = int(block.offsets[latent]) if name != "offsets" else latent
    path = folder / "codes-00000.safetensors"
    values = np.array(array)
    raw = values.view(np.uint32 if values.itemsize == 4 else np.uint64)
    raw[i] ^= np.array(1 << bit, raw.dtype)
    if (name, bit) == ("acts", 30):
        values[i] = np.inf
    data = path.read_bytes()
    at = data.index(array.tobytes())
    path.write_bytes(data[:at] + values.tobytes() + data[at + values.nbytes :])
    with pytest.raises(InputError, match="code of latent 7 is damaged|codes-00000.safetensors: corrupt"):
        Records(folder).entries(latent)
    with pytest.raises(InputError, match="codes-00000.safetensors: corrupt"):
        Records(folder).check()


def test_ablations_of_other_numbers_are_refused(folder):
    """The pages of Parquet have checksums, but not what says of which type they are, and not the file as a whole."""
    path = folder / ABLATIONS
    table = pq.read_table(path)
    for place, column in enumerate(table.columns):
        name = table.column_names[place]
        pq.write_table(table.set_column(place, name, column.take(list(range(len(column)))[::-1])), path)
        with pytest.raises(InputError, match=f"{ABLATIONS}: corrupt"):
            read_ablations(folder)
    wider = table.set_column(0, "latent", table["latent"].cast("int64"))
    for other in (wider, table.drop_columns("rank"), table.replace_schema_metadata({"saefast": "{}"})):
        pq.write_table(other, path)
        with pytest.raises(InputError, match=f"{ABLATIONS}: corrupt"):
            read_ablations(folder)
    pq.write_table(table, path)
    assert read_ablations(folder)


def test_a_pass_does_not_go_on_after_a_damaged_block(tmp_path, monkeypatch):
    write, left = codes.save_tensors, [3]

    def stopped(path, *rest):
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *rest)

    (tmp_path / "of").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(codes, "save_tensors", stopped)
        with pytest.raises(OSError, match="No space left"):
            recorded(tmp_path / "of")
    path = tmp_path / "of/records/codes-00000.safetensors"
    flip(path, 8 * (path.stat().st_size - 2))  # the lowest bits of an activation, which could as well be so
    with pytest.raises(InputError, match="codes-00000.safetensors: corrupt"):
        recorded(tmp_path / "of")
    flip(path, 8 * (path.stat().st_size - 2))
    recorded(tmp_path / "of").check()


def test_files_of_other_records_are_refused(folder):
    for name in ("codes", "text"):
        first, second = (folder / f"{name}-0000{i}.safetensors" for i in (0, 1))
        data = first.read_bytes()
        shutil.copy(second, first)
        with pytest.raises(InputError, match=rf"{first.name}: (not the|expected)"):
            Records(folder).check()
        with pytest.raises(InputError, match=rf"{first.name}: (not the|expected)"):
            read(folder)
        first.write_bytes(data)


def without_checksum(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    index = {key: value for key, value in index.items() if key != "checksum"} | changes
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": {}},
        {"blocks": [3]},
        {"complete": 1},
        {"config": {"n_top": "4"}},
        {"sae": {"d_in": 8}},
        {"context_length": None},
        {"separators": [None]},
        {"source": []},
        {"tables": {"latents.parquet": 3}},
    ],
    ids=str,
)
def test_an_index_that_was_edited_is_whole_in_kind_or_refused(folder, changes):
    without_checksum(folder)
    assert read(folder)["index"]["complete"]
    without_checksum(folder, **changes)
    with pytest.raises(
        InputError, match="index.json: corrupt: an entry is not of the kind that saefast writes"
    ):
        Records(folder)


def test_info_says_what_is_recorded(folder, capsys):
    found = describe(folder)
    assert (found["kind"], found["d_sae"], found["effects"]) == ("records", 24, "decoder, alignment")
    assert found["rows"] == Records(folder).n_rows and found["ablated_windows"] > 0 and not found["map"]
    (folder / "effects.safetensors").unlink()
    assert describe(folder)["effects"] is None and Effects.load(folder) == Effects()
    flip(folder / "examples.parquet", 5000)
    with pytest.raises(SystemExit):
        run(f"info {folder}")
    assert "examples.parquet: corrupt: expected checksum" in capsys.readouterr().err
