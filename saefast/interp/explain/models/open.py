"""The language model that a user names, with its answers kept."""

from pathlib import Path

from saefast.errors import check
from saefast.interp.explain.models import LanguageModel
from saefast.interp.explain.models.budget import Budget
from saefast.interp.explain.models.cache import Cached
from saefast.interp.explain.models.endpoint import Endpoint
from saefast.interp.explain.models.local import LocalModel


def is_url(what: str) -> bool:
    return what.startswith(("http://", "https://"))


def open_model(
    what: str,
    *,
    model: str | None = None,
    folder: str | Path | None = None,
    budget: Budget | None = None,
    concurrency: int = 8,
    timeout: float = 300.0,
    device: str | None = None,
    batch_tokens: int = 4096,
) -> LanguageModel:
    """
    Args:
        what: a folder or a name on the Hub; or the URL of a server, "http://localhost:8000/v1#NAME" with the model's name there.
        model: that name, if it is not in the URL.
        folder: where answers are kept, see `Cached`; None: nowhere.
        budget, concurrency, timeout: of a server, see `Endpoint`.
        device, batch_tokens: of a local model, see `LocalModel`.

    Raises:
        InputError: no such model, a URL without the name of a model, or a damaged file in the folder.
    """
    opened: LanguageModel
    if is_url(what):
        url, _, named = what.partition("#")
        name = model or named
        check(
            bool(name), "model: expected the model's name on the server, as in http://localhost:8000/v1#NAME"
        )
        opened = Endpoint(url, name, concurrency=concurrency, timeout=timeout, budget=budget)
    else:
        opened = LocalModel(what, device=device, batch_tokens=batch_tokens)
    return opened if folder is None else Cached(opened, folder)
