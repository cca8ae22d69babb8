"""SAEs on the Hub, which is mocked: one is fetched, several are listed."""

import pytest

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
    """A Hub with one repository: `files` are listed, and `folder` is the copy. Returns what was asked for."""
    asked = []

    def listed(repository, revision):
        if isinstance(files, Exception):
            raise files
        return files

    def snapshot(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(folder)

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
    ],
)
def test_the_hub_is_asked_for_the_files_of_one_sae(files, name, patterns, tmp_path, monkeypatch):
    asked = the_hub(monkeypatch, tmp_path, files)
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert hub.download(name).exists()
    assert asked == [("org/repo", None, patterns)]
