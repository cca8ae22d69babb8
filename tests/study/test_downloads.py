"""Downloads, with clients that are played: what is kept, what is left out, what is never taken for something else."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from saefast import InputError
from saefast.study import downloads
from saefast.study.downloads import Package, fetch


def package(name, registry="pypi", contents=None):
    contents = name.encode() if contents is None else contents
    return Package(registry, name, "1", hashlib.sha256(contents).hexdigest(), "free")


@pytest.fixture
def clients(monkeypatch):
    """pip, npm and apt that have everything except "gone", and the commands that they were given."""
    commands = []

    def run(command, cwd=None, check=False, **options):
        commands.append([str(word) for word in command])
        if "pip" in command:
            wanted = Path(command[-1]).read_text().splitlines()
            names, folder, ending = [line.split("==")[0] for line in wanted], Path(command[-3]), ".whl"
        else:
            ending = ".tgz" if command[0] == "npm" else "_1_all.deb"
            names, folder = [command[-1].split("@")[0]], Path(cwd)
        if "gone" in names:
            if check:
                raise subprocess.CalledProcessError(1, command)
            return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution")
        for name in names:
            (folder / f"{name}{ending}").write_text(name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


PACKAGES = [package("a"), package("b"), package("c", "npm"), package("d", "debian")]


def test_archives_are_downloaded_once_and_kept(clients, tmp_path):
    found = fetch(PACKAGES, tmp_path / "cache", print)
    assert {name: path.name for name, path in found.items()} == {
        "a": "a.whl",
        "b": "b.whl",
        "c": "c.tgz",
        "d": "d_1_all.deb",
    }
    assert len(clients) == 3  # pip once for both
    assert fetch(PACKAGES, tmp_path / "cache", print) == found and len(clients) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 4  # nothing temporary is left
    other = package("a", contents=b"another version")
    assert downloads._home(other, tmp_path) != downloads._home(PACKAGES[0], tmp_path)


@pytest.mark.parametrize("registry", ["pypi", "npm", "debian"])
def test_what_cannot_be_had_is_left_out_with_a_line(clients, tmp_path, registry):
    lines = []
    found = fetch([*PACKAGES, package("gone", registry)], tmp_path, lines.append)
    assert sorted(found) == ["a", "b", "c", "d"]
    [line] = [line for line in lines if "gone" in line]
    assert line.startswith("skipped gone: ")


def test_a_client_that_is_not_there(monkeypatch, tmp_path):
    def run(*args, **options):
        raise FileNotFoundError("npm")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match="npm has no c 1"):
        downloads.npm_download(PACKAGES[2], tmp_path)


def test_another_file_from_npm_is_refused(clients, tmp_path):
    with pytest.raises(InputError, match="npm: c 1 is not the file that was published"):
        downloads.npm_download(package("c", "npm", contents=b"what it was"), tmp_path)


def test_pip_gets_the_hashes_and_its_error_is_shown(clients, tmp_path):
    with pytest.raises(InputError, match="pip could not download gone==1: ERROR: No matching distribution"):
        downloads.pip_download(package("gone").requirement, tmp_path)
    assert list(tmp_path.iterdir()) == []
    digest = hashlib.sha256(b"gone").hexdigest()
    assert package("gone").requirement == f"gone==1 --hash=sha256:{digest}\n"
    assert {"--no-deps", "--requirement"} <= set(clients[0])
