"""Counts how the house is laid out: rooms, import circles, imports that go back up, functions on the way to a kernel.

    python -m tests.gates.house            of this checkout
    python -m tests.gates.house ../before  of another one: nothing of it is imported

An import inside of a function counts as one at the top does, and so does one of a name in a string ("saefast.files"), so that
nothing can hide a circle. An import goes back up when it closes a circle. A lambda in a table of bindings has no name and is
not counted as a function of the way.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "saefast"
# The host functions from `Trainer.step` to the one that runs the kernel: (file, function, the call of the next one in it).
# Beside today's ways stand those of commit a72fbd7, so that both trees can be counted; a way counts if all of it is found.
Hop = tuple[str, str, str]
STEP: Hop = ("saefast/train/stepper.py", "step", "train_step(")
OLD_STEP: list[Hop] = [
    ("saefast/trainer.py", "step", "step_on("),
    ("saefast/trainer.py", "step_on", "self._run("),
]
OLD_GRAPH: Hop = ("saefast/graph.py", "__call__", "train_step(")
SELECT: Hop = ("saefast/engine/architectures/topk.py", "select", "encode_topk(")
TILES: Hop = ("triton_kernels/pre_acts.py", "fused_pre_acts", "_gemm_encode_kernel[")
WAYS: dict[str, list[list[Hop]]] = {
    "update, native": [
        [
            STEP,
            ("saefast/engine/step.py", "train_step", "ops.update_("),
            ("saefast/native/__init__.py", "update_", "_C.update("),
            ("csrc/cpu/bind_update.cpp", "py_update", "update("),
            ("csrc/cpu/update.cpp", "update", "backward("),
        ],
        [
            *OLD_STEP,
            ("saefast/step.py", "train_step", "ops.update_("),
            ("saefast/native.py", "update_", "_C.update("),
            ("csrc/cpu/bind_update.cpp", "py_update", "update("),
            ("csrc/cpu/update.cpp", "update", "backward("),
        ],
    ],
    "encode, native": [
        [
            STEP,
            ("saefast/engine/step.py", "train_step", "select("),
            SELECT,
            ("saefast/native/encode.py", "encode_topk", "screen.top_k("),
            ("csrc/cpu/encode_topk.cpp", "ScreenedEncoder::top_k", "some_top_k("),
        ],
        [
            *OLD_STEP,
            ("saefast/step.py", "train_step", "select("),
            ("saefast/architectures/topk.py", "select", "encode_topk("),
            ("saefast/native.py", "encode_topk", "native_encode.encode_topk("),
            ("saefast/native_encode.py", "encode_topk", "screened_topk("),
            ("saefast/native_encode.py", "screened_topk", "encoder.encode("),
            ("csrc/cpu/bind_select.cpp", "encode", "encoder.encode("),
            ("csrc/cpu/encode.cpp", "TopkEncoder::encode", "some_rows("),
        ],
    ],
    "update, Triton": [
        [
            STEP,
            ("saefast/engine/step.py", "train_step", "ops.update_("),
            ("triton_kernels/update.py", "update_", "launch_update("),
            ("triton_kernels/update.py", "launch_update", "_update_kernel["),
        ],
        [
            *OLD_STEP,
            OLD_GRAPH,
            ("saefast/step.py", "train_step", "ops.update_("),
            ("triton_kernels/update.py", "update_", "launch_update("),
            ("triton_kernels/update.py", "launch_update", "_update_kernel["),
        ],
    ],
    "encode, Triton": [
        [
            STEP,
            ("saefast/engine/step.py", "train_step", "select("),
            SELECT,
            ("triton_kernels/encode.py", "encode_topk", "fused_pre_acts("),
            TILES,
        ],
        [
            *OLD_STEP,
            OLD_GRAPH,
            ("saefast/step.py", "train_step", "select("),
            ("saefast/architectures/topk.py", "select", "encode_topk("),
            ("triton_kernels/encode.py", "encode_topk", "pre_acts_and_maxima("),
            ("triton_kernels/pre_acts.py", "pre_acts_and_maxima", "launch("),
            ("triton_kernels/gemm.py", "launch", "kernel["),
        ],
    ],
}


def calls(root: Path, hop: Hop) -> bool:
    """Whether the function stands in the file and calls the next one."""
    file, function, call = hop
    path = root / file
    if not path.exists():
        return False
    python = path.suffix == ".py"
    start = rf"^( *)def {function}\(" if python else rf"^()[\w:<> ]+ {function}\("
    found = re.search(start, path.read_text(), re.MULTILINE)
    if found is None:
        return False
    after = found.string[found.end() :]
    end = rf"\n {{0,{len(found[1])}}}(?=def |class |@)" if python else r"\n}\n"
    return call in re.split(end, after, maxsplit=1)[0]


def ways(root: Path) -> Iterator[tuple[str, int, str]]:
    """Op and backend, the number of host functions, and their names."""
    for name, kinds in WAYS.items():
        found = [way for way in kinds if all(calls(root, hop) for hop in way)]
        yield name, len(found[0]) if found else 0, ", ".join(hop[1] for hop in found[0]) if found else "?"


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted((root / PACKAGE).rglob("*.py"))}


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known:
            found.add(node.value)
    return found & known


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> what it imports. The package itself says what is public and is left out."""
    places = modules(root)
    known = set(places) - {PACKAGE}
    return {name: imported(places[name], known) - {name} for name in known}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The largest sets of modules each of which reaches all others (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in sorted(arrows):
        if name not in number:
            visit(name)
    return sorted(found)


def rooms(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between the entries at the top of the package."""

    def room(name: str) -> str:
        return name.split(".")[1]

    found: dict[str, set[str]] = {room(name): set() for name in arrows}
    for name, others in arrows.items():
        found[room(name)] |= {room(other) for other in others} - {room(name)}
    return found


def deferred(path: Path, known: set[str]) -> set[str]:
    """What is imported inside of a function, or named in a string: what could not be imported at the top."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and node.module:
                    inner = {f"{node.module}.{alias.name}" for alias in node.names}
                    found |= inner & known or {node.module}
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found & known


def upward(root: Path, arrows: dict[str, set[str]]) -> list[str]:
    """Imports without which there were no circle: those that wait for a function to be called, else all of the circle."""
    places, found = modules(root), []
    for circle in circles(arrows):
        inside = {name: arrows[name] & set(circle) for name in circle}
        late = {name: deferred(places[name], set(circle)) & inside[name] for name in circle}
        if not any(late.values()):
            late = inside
        found += [f"{name} -> {other}" for name in circle for other in sorted(late[name])]
    return found


def lines_by_folder(root: Path) -> Iterator[tuple[str, int, int]]:
    """Folder, files, lines."""
    for top in ("saefast", "triton_kernels", "csrc", "benchmarks", "tests", "examples"):
        files = [
            p for p in (root / top).rglob("*") if p.suffix in {".py", ".cpp", ".h", ".cu", ".sh", ".cmake"}
        ]
        yield top, len(files), sum(len(path.read_text().splitlines()) for path in files)


def skipped_formats(root: Path) -> int:
    mark = "fmt: " + "skip"  # in two pieces, so that this line is none
    found = 0
    for top in ("saefast", "triton_kernels", "benchmarks", "tests", "examples"):
        found += sum(path.read_text().count(mark) for path in (root / top).rglob("*.py"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[2])
    root = parser.parse_args().root.resolve()
    arrows = graph(root)
    between = rooms(arrows)
    entries = {
        p.name
        for p in (root / PACKAGE).iterdir()
        if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))
    }
    print(f"rooms at the top of {PACKAGE}/: {len(entries)}; modules: {len(arrows)}")
    print(
        f"arrows between rooms: {sum(map(len, between.values()))}, between modules: {sum(map(len, arrows.values()))}"
    )
    print(f"circles of modules: {len(circles(arrows))}, of rooms: {len(circles(between))}")
    for circle in circles(arrows):
        print("   ", ", ".join(circle))
    back = upward(root, arrows)
    print(f"imports that go back up: {len(back)}", *back, sep="\n    ")
    for name, n, functions in ways(root):
        print(f"{name}: {n} host functions from Trainer.step to the kernel ({functions})")
    for folder, n_files, n_lines in lines_by_folder(root):
        print(f"{folder}/: {n_files} files, {n_lines} lines")
    print(f"fmt: skipped: {skipped_formats(root)}")


if __name__ == "__main__":
    main()
