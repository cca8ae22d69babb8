"""Counts how the house is laid out: rooms, import circles, imports that go back up, functions on the way to a kernel.

    python -m tests.gates.house            of this checkout
    python -m tests.gates.house ../before  of another one: nothing of it is imported

An import inside of a function counts as one at the top does, and so does one of a name in a string ("saefast.files"), so that
nothing can hide a circle. An import goes back up when it closes a circle. Native code is searched by names of functions.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "saefast"
# What a reader calls one after another, from `Trainer.step` to what runs the kernel: (file, function) as they must be found in
# the text, each with a call of the next. The first of the places that exists counts: a file has one before the move and one after.
Hop = tuple[tuple[str, ...], str]
TRAINER: Hop = (("saefast/train/trainer.py", "saefast/trainer.py"), "step")


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
    for folder, n_files, n_lines in lines_by_folder(root):
        print(f"{folder}/: {n_files} files, {n_lines} lines")
    print(f"fmt: skipped: {skipped_formats(root)}")


if __name__ == "__main__":
    main()
