"""SAEs on the Hub, which is mocked: one is fetched, several are listed."""

import sys
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from saefast import SAE, InputError, formats
from saefast.formats import hub
from tests.helpers.format_cases import make


def written(folder, format):
    formats.save(make({"k": 3}), folder / format, format)


@pytest.mark.parametrize("name", ["../x/y", "org/../../etc", "/etc/nothing", "~/sae", "one", "./a/b"])
def test_names_that_leave_their_folder_are_no_names_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(
        InputError, match="path: expected a folder, a file or organisation/repository on the Hub"
    ):
        SAE.from_pretrained(name)


def the_hub(monkeypatch, folder, files):
    """A Hub with one repository: `files` are listed, and `folder` is the copy; either may be an error. Returns what was
    asked for."""
    asked, listings = [], []

    def given(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    def listed(repository, revision):
        listings.append((repository, revision))
        return given(files)

    def snapshot(repository, revision, allow_patterns):
        assert (repository, revision) == listings[-1]
        asked.append((repository, revision, allow_patterns))
        return str(given(folder))

    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


SPARSIFY = [f"layers.{i}/sparsify/{name}" for i in (3, 12) for name in ("cfg.json", "sae.safetensors")]


@pytest.mark.parametrize("files", [SPARSIFY, ConnectionError("offline"), TimeoutError("no answer")], ids=str)
def test_the_hub_is_asked_for_one_folder(files, tmp_path, monkeypatch):
    written(tmp_path / "layers.3", "sparsify")
    asked = the_hub(monkeypatch, tmp_path, files)
    sae = SAE.from_pretrained("org/repo@v2/layers.3/sparsify")
    assert sae.config.k == 3 and sae.origin.format == "sparsify"
    assert asked == [("org/repo", "v2", ["layers.3/sparsify", "layers.3/sparsify/*"])]
    with pytest.raises(
        InputError, match=r"path: expected layers.4 in org/repo, found (none|only layers\.3/sparsify)"
    ):
        hub.download("org/repo/layers.4")


def test_a_repository_of_many_saes_is_listed_and_not_fetched(tmp_path, monkeypatch):
    asked = the_hub(
        monkeypatch, tmp_path, [f"layers.{i}/{n}" for i in range(30) for n in ("cfg.json", "sae.safetensors")]
    )
    listed = ", ".join(f"layers.{i}" for i in range(20))
    said = rf"path: expected one SAE, org/repo@v2 holds 30 SAEs: {listed} and 10 more. Name one, for example org/repo@v2/layers.0$"
    with pytest.raises(InputError, match=said):
        hub.download("org/repo@v2")
    qwen = [f"layer{i}.sae.pt" for i in (0, 1, 10, 2)]
    the_hub(monkeypatch, tmp_path, ["README.md", *qwen])
    with pytest.raises(
        InputError, match="holds 4 SAEs: layer0.sae.pt, layer1.sae.pt, layer2.sae.pt, layer10.sae.pt"
    ):
        hub.download("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50")
    gemma = [f"layer_{i}/width_16k/average_l0_{n}/params.npz" for i in (0, 1) for n in (13, 105)]
    the_hub(monkeypatch, tmp_path, gemma)
    with pytest.raises(
        InputError, match="google/x/layer_1 holds 2 SAEs: width_16k/average_l0_13, width_16k/average_l0_105"
    ):
        hub.download("google/x/layer_1")
    the_hub(monkeypatch, tmp_path, ["README.md", "model.bin"])
    with pytest.raises(
        InputError, match="path: expected an SAE in org/repo, found none in its files: README.md, model.bin"
    ):
        hub.download("org/repo")
    assert asked == []


@pytest.mark.parametrize(
    "files,name,patterns",
    [
        (["README.md", "cfg.json", "sae_weights.safetensors"], "org/repo", None),
        (["a/cfg.json", "a/sae.safetensors"], "org/repo", ["a", "a/*"]),  # the only one there is
        (["cfg.json", "sae.safetensors", "b/cfg.json"], "org/repo", ["cfg.json", "sae.safetensors"]),
        (
            ["t/ae.pt", "t/config.json", "u/ae.pt"],
            "org/repo/t/ae.pt",
            ["t/ae.pt", "t/ae.pt/*", "t/config.*", "config.*"],
        ),
        (
            ["config.json", "checkpoints/final.pt", "sae_weights.pt", "x/cfg.json"],
            "org/repo",
            ["config.json", "checkpoints/final.pt", "sae_weights.pt"],
        ),
        (
            ["r/x/ae.pt", "r/x/checkpoints/1.pt", "r/x/b/ae.pt", "r/x/b/c/ae.pt", "other/ae.pt"],
            "org/repo/r/x",
            ["r/x/ae.pt", "r/x/checkpoints/1.pt"],
        ),
        (["r/x/cfg.json", "r/x/sae.safetensors"], "org/repo/r", ["r/x", "r/x/*"]),
        (["r/x/cfg.json", "rest/cfg.json"], "org/repo/r", ["r/x", "r/x/*"]),  # not what begins with the name
        (
            ["a/b/c/7.pth"],
            "org/repo/a/b/c/7.pth",
            ["a/b/c/7.pth", "a/b/c/7.pth/*", "a/b/c/config.*", "a/b/config.*"],
        ),
        (
            ["a/layer_7.safetensors"],
            "org/repo/a/layer_7.safetensors",
            ["a/layer_7.safetensors", "a/layer_7.safetensors/*", "a/config.*", "config.*"],
        ),
        (["a/params.npz"], "org/repo/a/params.npz", ["a/params.npz", "a/params.npz/*"]),
    ],
)
def test_the_hub_is_asked_for_the_files_of_one_sae(files, name, patterns, tmp_path, monkeypatch):
    asked = the_hub(monkeypatch, tmp_path, files)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert hub.download(name).exists()
    assert asked == [("org/repo", None, patterns)]


def answer(status):
    """What huggingface_hub raises for an answer of the Hub with this status."""
    error = HfHubHTTPError(
        "the words of the Hub", response=SimpleNamespace(status_code=status, headers={}, request=None)
    )
    if status is None:
        error.response = None
    return error


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_not_on_the_hub_is_said_in_its_words(status, tmp_path, monkeypatch):
    asked = the_hub(monkeypatch, tmp_path, answer(status))
    with pytest.raises(
        InputError, match="^path: nothing at org/repo/a, and the Hub says: .*the words of the Hub"
    ):
        hub.download("org/repo/a")
    the_hub(monkeypatch, tmp_path, HFValidationError("not such a name"))
    with pytest.raises(InputError, match="^path: nothing at org/r--p, and the Hub says: not such a name$"):
        hub.download("org/r--p")
    assert asked == []


@pytest.mark.parametrize("status", [402, 405, 429, 500, 502, None])
def test_a_hub_that_cannot_answer_leaves_what_was_fetched_before(status, tmp_path, monkeypatch):
    asked = the_hub(monkeypatch, tmp_path, answer(status))
    (tmp_path / "a").mkdir()
    assert hub.download("org/repo/a") == tmp_path / "a"
    assert hub.download("org/repo") == tmp_path
    assert asked == [("org/repo", None, ["a", "a/*"]), ("org/repo", None, None)]


@pytest.mark.parametrize("error", [answer(404), LocalEntryNotFoundError("no copy"), OSError("no disk")])
def test_a_copy_that_cannot_be_made_is_one_line(error, monkeypatch):
    the_hub(monkeypatch, error, ConnectionError("offline"))
    with pytest.raises(
        InputError, match="^path: nothing at org/repo, and the Hub says: .*(no copy|no disk|words)"
    ):
        hub.download("org/repo")


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"^path: nothing at a/b; to load .*, `pip install saefast\[hub\]`$"):
        hub.download("a/b")


def test_a_folder_that_is_not_in_the_repository_lists_what_is(tmp_path, monkeypatch):
    the_hub(monkeypatch, tmp_path, ["README.md", "x/model.bin"])
    with pytest.raises(
        InputError, match=r"^path: expected y in org/repo@v1, found only README.md, x/model.bin$"
    ):
        hub.download("org/repo@v1/y")
    with pytest.raises(
        InputError, match=r"^path: expected an SAE in org/repo/x, found none in its files: x/model.bin$"
    ):
        hub.download("org/repo/x")
