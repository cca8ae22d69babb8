"""SAEs on the Hugging Face Hub, through huggingface_hub (the library of the field for it; extra `hub`)."""

from pathlib import Path, PurePosixPath

from saefast.errors import InputError, check, line
from saefast.formats.places import listing, places


def download(name: str) -> Path:
    """Where the local copy of `name` is.

    name: "organisation/repository", optionally followed by "@revision" and by "/folder" or "/file". Only the files of one
        SAE are fetched: of a repository or folder that holds several of them none, they are listed.

    Raises:
        InputError: `name` is not of that form, there is nothing on the Hub, it is several SAEs, or huggingface_hub is not
            installed.
    """
    parts = PurePosixPath(name).parts
    ok = len(parts) >= 2 and not name.startswith(("/", ".", "~")) and ".." not in parts
    wanted = "a folder, a file or organisation/repository on the Hub"
    check(ok, f"path: expected {wanted}, found nothing at {name}")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise InputError(
            f"path: nothing at {name}; to load it from the Hub, `pip install saefast[hub]`"
        ) from None
    repository, _, revision = parts[1].partition("@")
    inside, repository = "/".join(parts[2:]), f"{parts[0]}/{repository}"
    shown = f"{parts[0]}/{parts[1]}"
    try:
        files = huggingface_hub.list_repo_files(repository, revision=revision or None)
        inside, patterns = _wanted(files, inside, shown)
    except HFValidationError as error:
        raise InputError(f"path: nothing at {name}, and the Hub says: {error}") from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise InputError(f"path: nothing at {name}, and the Hub says: {line(error)}") from None
        patterns = _around(inside)
    except InputError:
        raise
    except Exception:  # noqa: BLE001 (no connection, in the words of its HTTP library: what was fetched before is there)
        patterns = _around(inside)
    try:
        copy = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=patterns
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"path: nothing at {name}, and the Hub says: {line(error)}") from None
    found = Path(copy) / inside
    check(found.exists(), f"path: expected {inside} in {repository}, found none")
    return found


def _wanted(files: list[str], inside: str, repository: str) -> tuple[str, list[str] | None]:
    """The place of the one SAE in `inside` of a repository of these files, and the patterns of what it needs."""
    if inside in files:
        return inside, _around(inside)
    below = [file for file in files if not inside or file.startswith(f"{inside}/")]
    found = places(file.removeprefix(f"{inside}/" if inside else "") for file in below)
    here = f"{repository}/{inside}".rstrip("/")
    check(
        bool(below), f"path: expected {inside} in {repository}, found only {listing(places(files) or files)}"
    )
    if not found:
        raise InputError(
            f"path: expected an SAE in {here}, found none in its files: {listing(sorted(below))}"
        )
    if "" in found:  # here, and not in the folders below
        return inside, _around(inside) if len(found) == 1 else _own(below, inside)
    if len(found) > 1:
        said = f"{len(found)} SAEs: {listing(found)}. Name one, for example {here}/{found[0]}"
        raise InputError(f"path: expected one SAE, {here} holds {said}")
    inside = f"{inside}/{found[0]}" if inside else found[0]
    return inside, _around(inside)


def _own(files: list[str], folder: str) -> list[str]:
    """Of these files those that are in the folder itself, or in its `checkpoints`."""
    depth = len(PurePosixPath(folder).parts) + 1
    return [f for f in files if len(p := PurePosixPath(f).parts) == depth or p[depth - 1] == "checkpoints"]


def _around(inside: str) -> list[str] | None:
    """The patterns of a folder or file, with the configs that a file has beside or above it."""
    if not inside:
        return None
    patterns = [inside, f"{inside}/*"]
    if PurePosixPath(inside).suffix in (".pt", ".pth", ".safetensors"):
        above = list(PurePosixPath(inside).parents)[:2]
        patterns += [str(folder / "config.*") for folder in above]
    return patterns
