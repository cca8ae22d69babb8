"""`saefast info`: what a path holds, and what this machine offers."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import saefast
from saefast.config.train import TrainConfig
from saefast.errors import InputError, check


@dataclass(frozen=True)
class Info:
    """Show what a run, an SAE, records, a shard folder or an activation file hold; without PATH, what this machine offers.

    Of records every file is read and compared with its checksum.
    """

    path: Positional[Path | None] = None
    """Run folder, SAE folder, folder of records, shard folder, .npy or .safetensors file."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        import torch

        from saefast import backend, instructions

        result: dict[str, Any] = {}
        if self.path is not None:
            result = {"path": str(self.path)} | describe(self.path)
        name, reason = backend.choose("cuda" if torch.cuda.is_available() else "cpu")
        unavailable = {n: why for n in backend.MODULES if (why := backend.unavailable(n))}
        result["backend"] = {"auto": name, "why": reason, "instruction_sets": instructions.native_isas()}
        result["backend"]["encoder"] = instructions.native_encoder()
        result["backend"]["unavailable"] = unavailable
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        result["machine"] = {"gpu": gpu, "torch": torch.__version__, "threads": torch.get_num_threads()}
        result["saefast"] = saefast.__version__
        show(result, self.json)


def describe(path: Path) -> dict[str, Any]:
    """What `path` holds, as plain values."""
    from saefast import formats
    from saefast.activations.open import open_source
    from saefast.interp.records import is_records
    from saefast.sae import SAE
    from saefast.train.run import checkpoint, run_folder
    from saefast.train.run.loggers import read_lines

    kinds = "a run, an SAE, records, a shard folder or an activation file"
    check(path.exists(), f"path: expected {kinds}, found nothing at {path}")
    if is_records(path):
        return _of_records(path)
    try:
        format = formats.detect(path)
    except InputError as no_sae:
        try:
            source = open_source(path)
        except InputError as error:
            raise InputError(f"{error}; {no_sae}") from None  # which says what there is
        return {"kind": "activations", "d_in": source.d_in} | source.describe()
    found: dict[str, Any] = {"kind": "run" if (path / "run.json").exists() else "sae", "format": format}
    if found["kind"] == "run":
        try:
            found |= run_folder.read(path)
            total = TrainConfig(**found["train"]).total_steps
        except (TypeError, KeyError):
            raise InputError(f"{path / 'run.json'}: expected the description of a run") from None
        found["progress"] = {"step": 0, "of": total}
        if (path / "checkpoint.safetensors").exists():
            _, meta = checkpoint.read(path)
            found["progress"] = {"step": meta["step"], "of": total}
        lines = read_lines(path / "metrics.jsonl")
        found["last_metrics"] = lines[-1] if lines else None
    if found["kind"] == "sae" or (path / "config.json").exists():
        sae = SAE.from_pretrained(path)
        found["sae"] = asdict(sae.config) | sae.metadata
        found["parameters"] = sum(p.numel() for p in sae.parameters())
    return found


def _of_records(path: Path) -> dict[str, Any]:
    """After all files were checked."""
    from saefast.interp.atlas import Atlas
    from saefast.interp.effects import Effects, read_ablations
    from saefast.interp.records import Records

    records = Records(path)
    records.check()
    made = [name for name, table in Effects.load(path)._asdict().items() if table is not None]
    sae, index = records.index["sae"], records.index
    found = {"kind": "records", "d_sae": records.d_sae, "d_in": sae["d_in"], "rows": records.n_rows}
    found |= {"entries": sum(block["n_entries"] for block in index["blocks"])}
    found |= {"ablated_windows": len(read_ablations(path)), "map": Atlas.load(path) is not None}
    found |= {"effects": ", ".join(made) or None, "sae": sae, "source": index["source"]}
    return found


def show(result: dict[str, Any], as_json: bool = False) -> None:
    """Print nested figures as aligned lines, or as JSON."""
    if as_json:
        print(json.dumps(strict(result), indent=2))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, entry in value.items():
                print(f"  {inner:22} {entry:.5g}" if isinstance(entry, float) else f"  {inner:22} {entry}")
        else:
            print(f"{key:24} {value:.5g}" if isinstance(value, float) else f"{key:24} {value}")


def strict(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
