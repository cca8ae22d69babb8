"""SAEs on the Hugging Face Hub, through huggingface_hub (the library of the field for it; extra `hub`)."""

from pathlib import Path, PurePosixPath

from saefast.errors import InputError, check


def download(name: str) -> Path:
    """Where the local copy of `name` is.

    name: "organisation/repository", optionally followed by "@revision" and by "/folder" or "/file".

    Raises:
        InputError: `name` is not of that form, there is nothing on the Hub, or huggingface_hub is not installed.
    """
    parts = PurePosixPath(name).parts
    ok = len(parts) >= 2 and not name.startswith(("/", ".", "~")) and ".." not in parts
    wanted = "a folder, a file or organisation/repository on the Hub"
    check(ok, f"path: expected {wanted}, found nothing at {name}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise InputError(
            f"path: nothing at {name}; to load it from the Hub, `pip install saefast[hub]`"
        ) from None
    repository, _, revision = parts[1].partition("@")
    inside, repository = "/".join(parts[2:]), f"{parts[0]}/{repository}"
    patterns = [inside, f"{inside}/*"] if inside else None
    try:
        copy = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(f"path: nothing at {name}, and the Hub says: {error}") from None
    found = Path(copy) / inside
    check(found.exists(), f"path: expected {inside} in {repository}, found none")
    return found
