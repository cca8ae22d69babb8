"""Damaged files of every kind: each is read as a result or refused in one line. `python -m tests.faults.damaged --help`

    ours      the result is the one of the whole file, bit for bit, or `InputError`; a JSON file that lost its checksum is trusted
    theirs    most have no checksum: a result counts if its numbers are finite and its config is possible

Every other end (another exception, a message of several lines, a wrong result, more than 10 s) is printed with what makes
it again, and the exit status is 1.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from saefast import SAE, InputError, TrainConfig, Trainer, formats, open_source
from saefast.activations.shards import ShardWriter
from saefast.cli.info import describe
from saefast.files import digest
from tests.faults.damage import json_file
from tests.faults.damage_inside import kinds_for
from tests.faults.damaged_runs import RUNS
from tests.faults.looked import described
from tests.faults.looked import read as read_records
from tests.helpers.format_cases import D_IN, EXACT, JUMP, NESTED, label, make, rows
from tests.helpers.published import QWEN, lens_checkpoint, llama_scope, parts

SLOW = 10.0  # seconds


class Subject(NamedTuple):
    name: str
    make: Callable[[Path], Path | None]  # writes into a new folder; what to read, if not the folder
    read: Callable[[Path], Any]
    ours: bool
    lost: bool = False  # whether a file may be gone, too


def read_sae(path: Path) -> Any:
    """What an SAE computes and says of itself."""
    sae = SAE.from_pretrained(path)
    config, tensors = sae.config, {name: tensor.detach() for name, tensor in sae.named_parameters()}
    for name, tensor in tensors.items():
        assert tensor.isfinite().all(), f"{name} is not finite"
    assert (config.k or 1) <= config.d_sae and list(sae.W_enc.shape) == [config.d_sae, config.d_in]
    sae(torch.ones(2, config.d_in, dtype=sae.b_dec.dtype))
    return config, sae.metadata, digest(tensors), sae.origin and (sae.origin.config, sae.origin.dtypes)


def read_rows(path: Path) -> Any:
    source = open_source(path)
    return digest({str(i): chunk for i, chunk in enumerate(source.rows())}), source.d_in


def read_run(path: Path) -> Any:
    found = describe(path)
    del found["last_metrics"]  # metrics.jsonl is a log: a line of it is shown as it is
    return found


def subjects() -> list[Subject]:
    found = []

    def of_format(format: str, options: dict[str, Any]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            formats.save(make(options), folder / "x", format)
            for path in (folder / "x").iterdir():
                path.rename(folder / path.name)
            (folder / "x").rmdir()

        return write

    for case in EXACT:
        found.append(Subject(label(case), of_format(*case), read_sae, False))
    for options in ({"k": 3}, JUMP, NESTED, {"k": 3, "input_norm": "scale", "scales": (2.0, 3.0)}):
        found.append(Subject(label(("saefast", options)), of_format("saefast", options), read_sae, True))

    def from_lens(folder: Path) -> None:
        formats.save(make(JUMP), folder / "x", "sae_lens")
        SAE.from_pretrained(folder / "x").save_pretrained(folder)
        shutil.rmtree(folder / "x")

    def qwen(folder: Path) -> Path:
        (folder / QWEN).mkdir()
        W_enc, b_enc, W_dec, b_dec = parts(1024)
        path = folder / QWEN / "layer7.sae.pt"
        torch.save({"W_enc": W_enc, "W_dec": W_dec.T.contiguous(), "b_enc": b_enc, "b_dec": b_dec}, path)
        return path

    def goodfire(folder: Path) -> Path:
        W_enc, b_enc, W_dec, b_dec = parts()
        held = {"encoder_linear.weight": W_enc, "encoder_linear.bias": b_enc, "decoder_linear.bias": b_dec}
        torch.save(held | {"decoder_linear.weight": W_dec.T.contiguous()}, folder / "x-SAE-l19.pth")
        return folder / "x-SAE-l19.pth"

    def tracer(folder: Path) -> Path:
        W_enc, b_enc, W_dec, b_dec = parts()
        save_file(
            {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, folder / "layer_3.safetensors"
        )
        (folder / "config.yaml").write_text("model_name: x\nactivation: topk\nk: 3\n")
        return folder / "layer_3.safetensors"

    def scaled(folder: Path) -> None:
        lens_checkpoint(folder / "x", {"activation": "batch_topk", "k": 3}, 0.5)
        for path in (folder / "x").iterdir():
            path.rename(folder / path.name)
        (folder / "x").rmdir()

    def llama(folder: Path) -> None:
        llama_scope(folder / "x")
        shutil.copytree(folder / "x", folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "x")

    def npy(folder: Path) -> Path:
        np.save(folder / "acts.npy", rows().numpy())
        return folder / "acts.npy"

    def arrays(folder: Path) -> Path:
        save_file({"activations": rows().half()}, folder / "acts.safetensors")
        return folder / "acts.safetensors"

    def shards(folder: Path) -> Path:
        writer = ShardWriter(
            folder / "acts", D_IN, torch.float16, "model", "layers.3", {"context_length": 8}, 40
        )
        writer.append(rows().half())
        writer.close()
        return folder / "acts"

    def run(folder: Path) -> Path:
        config = TrainConfig(total_tokens=64, batch_size=16, log_every=2, checkpoint_every=2, unit_norm=False)
        Trainer(make({"k": 3}), config).fit(rows(), folder / "run")
        (folder / "run" / "curves.png").unlink(missing_ok=True)
        return folder / "run"

    def records(folder: Path) -> Path:
        return described(folder).folder

    for name, write in {
        "sae_lens-scaler": scaled,
        "llama_scope": llama,
        "qwen": qwen,
        "goodfire": goodfire,
        "tracer": tracer,
    }.items():
        found.append(Subject(name, write, read_sae, False))
    found.append(Subject("saefast-origin", from_lens, read_sae, True))
    found.append(Subject("npy", npy, read_rows, False))
    found.append(Subject("safetensors", arrays, read_rows, False))
    found.append(Subject("shards", shards, read_rows, True))
    found.append(Subject("run", run, read_run, True))
    found.append(Subject("records", records, read_records, True))
    found += [Subject(name, *each, True, True) for name, each in RUNS.items()]
    return found


class Prepared:
    """A subject on disk: whole, damaged for a moment, whole again."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.subject, self.folder = subject, folder
        self.path = subject.make(folder) or folder
        self.whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        self.want = subject.read(self.path)
        assert self.want == subject.read(self.path), subject.name

    def end(self, seed: int) -> str:
        """How the reading of one damage ends: "result", "one line", or what is wrong."""
        rng = random.Random(seed)
        path = rng.choice(list(self.whole))
        damage = rng.choice(kinds_for(path.name))
        data = damage(self.whole[path], rng)
        same = data == self.whole[path]
        path.write_bytes(data)
        if rng.random() < (0.05 if self.subject.lost else 0.01 * (self.subject.read is read_sae)):
            path.unlink()
            same = False
        started = time.perf_counter()
        what = f"{self.subject.name} {path.relative_to(self.folder)} {damage.__name__} seed {seed}"
        try:
            got = self.subject.read(self.path)
            # one that was edited by hand looks so, see docs/reliability.md
            trusted = damage is json_file and b"blake2b-" not in data
            if (same or (self.subject.ours and not trusted)) and got != self.want:
                return f"WRONG RESULT {what}"
            end = "result"
        except InputError as error:
            end = "one line"
            if "unexpected contents" in str(error):  # the net below the readers, which should have known
                return f"OTHER {what}: {str(error)[:300]}"
            if "\n" in str(error) or len(str(error)) > 2_000:
                return f"SEVERAL LINES {what}: {str(error)[:500]!r}"
            if same:
                return f"REFUSED WHOLE {what}: {str(error)[:300]}"
        except Exception as error:  # noqa: BLE001 (that is what is looked for)
            return f"OTHER {what}: {type(error).__name__}: {str(error)[:300]}"
        finally:
            if not path.is_file() or path.read_bytes() != self.whole[path]:
                path.write_bytes(self.whole[path])
        took = time.perf_counter() - started
        return end if took < SLOW else f"SLOW {what}: {took:.1f} s"


def campaign(budget: float, seed: int, only: str = "", rounds: int = 10**9) -> tuple[Counter[str], list[str]]:
    """Counts of the ends, and the wrong ones, after `budget` seconds or `rounds` of damage to one subject after the other."""
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        chosen = [s for s in subjects() if s.name.startswith(only)]
        ready = [Prepared(subject, Path(scratch) / str(i)) for i, subject in enumerate(chosen)]
        started, trial = time.perf_counter(), seed << 32
        while time.perf_counter() - started < budget and trial < (seed << 32) + rounds * len(ready):
            for prepared in ready:
                end = prepared.end(trial)
                counts[end.split(" ")[0] if end not in ("result", "one line") else end] += 1
                if end not in ("result", "one line"):
                    wrong.append(end)
                trial += 1
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=60, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="subjects whose names begin so")
    parser.add_argument("--trial", type=int, help="of a subject (--only): one damage again, by its seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.trial is not None:
        (subject,) = [s for s in subjects() if s.name == args.only]
        with tempfile.TemporaryDirectory() as scratch:
            print(Prepared(subject, Path(scratch) / "0").end(args.trial))
        return 0
    counts, wrong = campaign(args.budget, args.seed, args.only)
    for line in wrong[:100]:
        print(line)
    print(
        f"{sum(counts.values()):,} damaged files: "
        + ", ".join(f"{n:,} {end}" for end, n in sorted(counts.items()))
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
