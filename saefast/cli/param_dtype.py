"""In which format a run from the command line keeps its weights where no --param-dtype says it.

`TrainConfig` has "fp32", because the matrices of the SAE that a caller holds become bf16 with any other. Here the whole run
is ours, and "split" is the same fp32 weights with fewer bytes moved: 48 in place of 52 for a pair of parameters in a step.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saefast.errors import check


def param_dtype_of(train: Mapping[str, Any], device: str, earlier: str | None = None) -> str:
    """What --param-dtype says; else that of the run that goes on; else "split" where a GPU's products are in bf16. Other
    optimizers than Adam have no formats.

    Args:
        train: the fields of TrainConfig; "param_dtype" is None where it is not given.
        device: where the run is.
        earlier: of the run that goes on, see `kept_by`.
    """
    if train["param_dtype"] is not None:
        return str(train["param_dtype"])
    if train["optimizer"] != "adam":
        return "fp32"
    return earlier or ("split" if _products_in_bf16(train, device) else "fp32")


def _products_in_bf16(train: Mapping[str, Any], device: str) -> bool:
    """Whether the run is on the kernels of a GPU, and they multiply in bf16."""
    import torch

    from saefast.backend import choose

    kind, backend = torch.device(device).type, train["backend"]
    kernels = kind == "cuda" and (choose(kind)[0] if backend == "auto" else backend) == "triton"
    return kernels and train["compute_dtype"] in ("auto", "bf16")


def kept_by(folders: Iterable[Path]) -> str | None:
    """The param_dtype of the runs in `folders` that have a checkpoint to go on from, of those with Adam; None: of no run.

    Raises:
        InputError: they have several, so that --param-dtype, or the file of a sweep, must say which.
    """
    from saefast.train.run import checkpoint, run_folder

    found = set()
    for folder in folders:
        if (folder / checkpoint.CHECKPOINT).exists():
            train = run_folder.read(folder)["train"]
            if train.get("optimizer", "adam") == "adam":
                found.add(train.get("param_dtype", "fp32"))
    one = len(found) < 2
    check(
        one, f"param_dtype: expected --param-dtype for runs that were started with {sorted(found)}, got none"
    )
    return next(iter(found), None)
