"""Records: what every latent of an SAE stands for, from one pass over a source with text.

    records = record(sae, source, "runs/demo/records")
    records.table()                      # a row of statistics for each latent
    records.latent(17).examples["top"]   # its strongest examples, with their tokens

index.json in the folder says what was recorded from what; codes.py, tables.py describe the other files. A pass that was
interrupted goes on at its last block when it is called again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saefast.activations.sources import Source
from saefast.config.records import RecordsConfig
from saefast.errors import check
from saefast.files import digest
from saefast.interp.records.batches import check_has_text
from saefast.interp.records.codes import write_codes
from saefast.interp.records.folder import begin, finish, index_of
from saefast.interp.records.index_file import is_records
from saefast.interp.records.plan import Plan, plan
from saefast.interp.records.read import Example, LatentRecord, Records
from saefast.interp.records.tables import arrow
from saefast.sae import SAE

__all__ = [
    "Example",
    "LatentRecord",
    "Plan",
    "Records",
    "RecordsConfig",
    "is_records",
    "plan",
    "record",
]


def record(
    sae: SAE,
    source: Source,
    folder: str | Path,
    config: RecordsConfig | None = None,
    *,
    separators: Sequence[int] = (),
    tokens: int | None = None,
    backend: str = "auto",
    progress: Callable[[int], object] = lambda n_rows: None,
) -> Records:
    """Record every latent in one pass over `source`.

    Args:
        sae: any SAE; `saefast.interp.neurons.neurons(d_in)` for the neurons themselves.
        source: a shard folder made from text, or a model on text.
        folder: made if it does not exist. Records of the same SAE, source and config that are there already are returned, or
            finished if they were interrupted.
        separators: token ids that end a document, usually the eos of the tokenizer. Windows do not cross them, and
            documents are split into those for explaining and those for scoring. Without any, each context is a document.
        tokens: rows to record; default: all.
        backend: which implementation of the ops runs.
        progress: called with the number of rows of each batch.

    Raises:
        InputError: a source without text or of another width, NaN or Inf in it, a folder with other records or with damaged
            files, or too little room on the disk (see `plan`).
    """
    arrow()
    check_has_text(source)
    _check_same_place(sae, source)
    folder, config = Path(folder).absolute(), config or RecordsConfig()
    index = index_of(folder, described(sae), source.describe(), config, separators, tokens)
    if index["complete"]:
        return Records(folder)
    if not index["blocks"]:
        begin(folder, index, plan(sae, source, config, tokens))
    write_codes(sae, source, folder, index, backend, tokens, progress)
    return finish(folder, index)


def described(sae: SAE) -> dict[str, Any]:
    """Which SAE it is: by its weights, so that a run that trained on has other records."""
    known = {"d_in": sae.config.d_in, "d_sae": sae.config.d_sae, "digest": digest(sae.tensors)}
    return sae.metadata | known


def _check_same_place(sae: SAE, source: Source) -> None:
    """Raise InputError if the SAE is of another width, or of another hook point of the same model."""
    width, d_in = source.d_in, sae.config.d_in
    check(width == d_in, f"source: expected width d_in = {d_in} of the SAE, got {width}")
    model, hook = (sae.metadata.get(name) for name in ("model_name", "hook_name"))
    found = source.describe()
    same_model = model is not None and model == found.get("model")
    ok = not same_model or hook is None or not isinstance(found.get("hook"), str) or found["hook"] == hook
    check(
        ok, f"source: expected activations at {hook!r}, where the SAE was trained, got {found.get('hook')!r}"
    )
