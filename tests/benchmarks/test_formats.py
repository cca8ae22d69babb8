"""The comparison of formats in its toy form: each format is trained for every seed, and compared with fp32 of that seed."""

import re

import pytest

from benchmarks.ops import formats


def test_smoke(capsys):
    formats.main(["--smoke"])
    text = capsys.readouterr().out
    named = ["-".join(pair) for pair in formats.FORMATS]
    found = re.findall(r"seed (\d) (\S+) +FVU ([\d.]+)", text)
    assert [(seed, name) for seed, name, _ in found] == [(str(s), name) for s in range(2) for name in named]
    fvu = {(name, int(seed)): float(value) for seed, name, value in found}
    assert all(0 < value < 1 for value in fvu.values())
    for name, mean, *more in re.findall(r"(\S+) +mean FVU ([\d.]+); over fp32-fp32: (\S+)%, (\S+)%", text):
        assert float(mean) == pytest.approx((fvu[name, 0] + fvu[name, 1]) / 2, abs=2e-5)
        for seed, share in enumerate(more):
            want = fvu[name, seed] / fvu["fp32-fp32", seed] - 1
            assert float(share) / 100 == pytest.approx(want, abs=5e-5)
        named.remove(name)
    assert not named


def test_folders_are_needed(capsys):
    with pytest.raises(SystemExit):
        formats.main(["one"])
    assert "give two folders of activations" in capsys.readouterr().err
