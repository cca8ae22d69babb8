"""SAEs on the Hugging Face Hub, through huggingface_hub (the library of the field for it; extra `hub`)."""

from pathlib import Path, PurePosixPath

from saefast.errors import InputError, check


def download(name: str) -> Path:
    """ "organisation/repository", with "@revision" and "/folder" or "/file" behind it if wanted -> where its copy is.

    Raises:
        InputError: not such a name, nothing there, or huggingface_hub is not installed.
    """
    parts = PurePosixPath(name).parts
    ok = len(parts) >= 2 and not name.startswith(("/", ".", "~")) and ".." not in parts
    check(
        ok, f"path: expected a folder, a file or organisation/repository on the Hub, found nothing at {name}"
    )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise InputError(
            f"path: nothing at {name}; to load it from the Hub, `pip install saefast[hub]`"
        ) from None
    repository, _, revision = parts[1].partition("@")
    inside = "/".join(parts[2:])
    try:
        copy = snapshot_download(
            f"{parts[0]}/{repository}", revision=revision or None, allow_patterns=[inside, f"{inside}/*"] if inside else None
        )  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(f"path: nothing at {name}, and the Hub says: {error}") from None
    found = Path(copy) / inside
    check(found.exists(), f"path: expected {inside} in {parts[0]}/{repository}, found none")
    return found
