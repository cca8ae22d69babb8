"""What explanations predicted of text, window by window: simulations.jsonl in a folder of records, beside explanations.jsonl.

A line of it has the simulations of one explanation, which it knows by latent, method and model, as explanations.jsonl does:
    {"latent": 17, "method": "rules", "model": null, "simulations": [
        {"slot": 640, "length": 64, "expected": [0, 1.25, ...], "scale": "neuron_activations"}]}
slot is that of the first token of the window (context * context_length + position). Numbers have 4 significant digits. scale says what
they are: the unit of the real activations, or 0 to 10 of a language model's answers. With "distribution_values" and
"distribution_probabilities", for each token a list of numbers, it is known of what `expected` is the mean.

Lines are only ever added: of two for the same explanation the later one counts, and one without simulations takes them away. What a kill left of the last line counts as nothing,
and is cut off by the next one who adds some.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saefast.errors import InputError, check, shown
from saefast.files import naming, refuse_pointer

SIMULATIONS = "simulations.jsonl"
SCALES = ("neuron_activations", "simulated_normalized_activations")  # as OpenAI's files call them
DISTRIBUTION = ("distribution_values", "distribution_probabilities")
Key = tuple[int, str | None, str | None]

TEXT = rb'(?:null|"(?:[^"\\]|\\.)*")'
HEAD = re.compile(
    rb'\{"latent": (\d+), "method": (%s), "model": (%s), "simulations": \[' % (TEXT, TEXT)
)  # as they are written here, so that an index needs no numbers


class Simulations:
    """The file in a folder of records: only where each line begins is in memory.

    Args:
        folder: of records. The file need not exist.

    Raises:
        InputError: a line of another form than those written here is no set of simulations.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).absolute() / SIMULATIONS
        self._begins: dict[Key, int] = {}
        self._size = 0  # of whole lines
        self._reader: Any = None
        self._writer: Any = None
        if not self.path.exists():
            return
        refuse_pointer(self.path)
        names: dict[bytes, str | None] = {}
        with open(self.path, "rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    break
                if head := HEAD.match(text):
                    method, model = (_name(name, names) for name in head.groups()[1:])
                    self._begins[int(head[1]), method, model] = self._size
                elif text.strip():
                    row = _parsed(text, f"{self.path}, line {number}")
                    self._begins[row["latent"], row["method"], row["model"]] = self._size
                self._size += len(text)

    def __len__(self) -> int:
        return len(self._begins)

    def __iter__(self) -> Iterator[Key]:
        """(latent, method, model) of each, in the order of the file."""
        return iter(sorted(self._begins, key=self._begins.__getitem__))

    def get(self, latent: int, method: str | None, model: str | None) -> list[dict[str, Any]]:
        """Those of an explanation, `expected` (and the distributions) as floats; none if there are none.

        Raises:
            InputError: the line is damaged; the message has the file and the number of the line.
        """
        begin = self._begins.get((latent, method, model))
        if begin is None:
            return []
        if self._reader is None:
            self._reader = open(self.path, "rb")  # noqa: SIM115 (as long as this object)
        self._reader.seek(begin)
        try:
            found: list[dict[str, Any]] = _parsed(self._reader.readline(), "")["simulations"]
        except InputError as error:
            raise InputError(f"{self.path}, line {self._number(begin)}{error}") from None
        return found

    def _number(self, begin: int) -> int:
        """Of the line that begins there."""
        number, at = 1, 0
        with open(self.path, "rb") as file:
            while at < begin:
                at += len(file.readline())
                number += 1
        return number

    def append(
        self, latent: int, method: str | None, model: str | None, simulations: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add the simulations of an explanation, in place of earlier ones of it. On disk for sure after `close`.

        Args:
            simulations: as in the file; the numbers may be arrays.

        Raises:
            InputError: they are not as in the file; another process adds some, too.
        """
        listed = [{name: _listed(value) for name, value in one.items()} for one in simulations]
        row = {"latent": latent, "method": method, "model": model, "simulations": listed}
        text = _text(_checked(row, f"simulations of latent {latent}"))
        if self._writer is None:
            self._writer = open(self.path, "ab")  # noqa: SIM115 (as long as this object)
            self._check_alone()
            self._writer.truncate(self._size)
        with naming(self.path):
            self._writer.write(text)
            self._writer.flush()
        self._begins[latent, method, model] = self._size
        self._size += len(text)

    def _check_alone(self) -> None:
        with open(self.path, "rb") as file:
            file.seek(self._size)
            torn = b"\n" not in file.read()
        check(torn, f"{self.path}: expected to be the only one that adds simulations, got lines of another")

    def close(self) -> None:
        if self._writer is not None:
            with naming(self.path):
                os.fsync(self._writer.fileno())
            self._writer.close()
        if self._reader is not None:
            self._reader.close()
        self._reader = self._writer = None


def read_simulations(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines that count, as they are in the file, one in memory. No file: none.

    Raises:
        InputError: a line is no set of simulations; the message has the file and the number of the line.
    """
    found = Simulations(folder)
    try:
        for latent, method, model in found:
            simulations = found.get(latent, method, model)
            if simulations:
                yield {"latent": latent, "method": method, "model": model, "simulations": simulations}
    finally:
        found.close()


def _name(text: bytes, names: dict[bytes, str | None]) -> str | None:
    """A name in JSON, each one once in memory."""
    if text not in names:
        names[text] = json.loads(text)
    return names[text]


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        value = text
    return _checked(value, where)


def _checked(value: Any, where: str) -> dict[str, Any]:
    want = '{"latent": number, "method": text, "model": text, "simulations": [{"slot": number, "length": n, '
    want += f'"expected": [n numbers], "scale": {" or ".join(SCALES)}}}]}}'
    try:
        key = {name: value.get(name) for name in ("latent", "method", "model")}
        good = type(key["latent"]) is int and key["latent"] >= 0
        good = good and all(key[name] is None or isinstance(key[name], str) for name in ("method", "model"))
        good = good and isinstance(value["simulations"], list)
        simulations = [_simulation(one) for one in value["simulations"]]
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
        good = False
    if not good:
        raise InputError(f"{where}: expected {want}, got {shown(value)}")
    return key | {"simulations": simulations}


def _simulation(one: Any) -> dict[str, Any]:
    """ValueError if it is none."""
    slot, n, scale = one["slot"], one["length"], one["scale"]
    found = {"slot": slot, "length": n, "expected": _numbers(one["expected"]), "scale": scale}
    good = type(slot) is int and type(n) is int and slot >= 0 and n == len(found["expected"]) > 0
    good = good and scale in SCALES and sum(name in one for name in DISTRIBUTION) != 1
    if DISTRIBUTION[0] in one:
        values, probabilities = ([_numbers(some) for some in one[name]] for name in DISTRIBUTION)
        good = good and list(map(len, values)) == list(map(len, probabilities)) and len(values) == n
        found |= zip(DISTRIBUTION, (values, probabilities), strict=True)
    if not good:
        raise ValueError
    return found


def _numbers(values: Any) -> list[float]:
    ok = (
        isinstance(values, list)
        and set(map(type, values)) <= {int, float}
        and all(map(math.isfinite, values))
    )
    if not ok:
        raise ValueError
    return list(map(float, values))


def _text(row: Mapping[str, Any]) -> bytes:
    """The line: `HEAD`, and numbers of 4 digits."""
    head = {name: row[name] for name in ("latent", "method", "model")}
    parts = []
    for one in row["simulations"]:
        lists = {"expected": _short(one["expected"])}
        lists |= {name: f"[{','.join(map(_short, one[name]))}]" for name in DISTRIBUTION if name in one}
        known = json.dumps({name: one[name] for name in ("slot", "length", "scale")})
        parts.append(known[:-1] + "".join(f', "{name}": {text}' for name, text in lists.items()) + "}")
    return f'{json.dumps(head)[:-1]}, "simulations": [{", ".join(parts)}]}}\n'.encode()


def _short(values: Sequence[float]) -> str:
    return f"[{','.join(['%.4g' % value for value in values])}]"  # noqa: UP031 (twice as fast)
