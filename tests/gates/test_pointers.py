"""Every file, module and name of this repository that docs, docstrings and comments mention exists.

What counts as a pointer:

- a path that begins with a folder of the repository (saefast/engine/step.py), and a relative link in a Markdown page;
- the name of a source file or a page (splice.py, drop-in/pytorch.md): the path of some file must end with it, unless it begins
  with a folder that we do not have;
- a dotted name that begins with a package of ours (saefast.interp.splice.evaluate_in_model); a module has the names that it
  defines, not those that it imports, unless it is an __init__.py or lists them in __all__;
- in backticks, `module.name` and `Class.name`, where the module or the class is ours. `trainer.optimizer` may also be what a
  variable of that name has: it is right if the code itself writes trainer.optimizer.

History is not looked at: CHANGELOG.md, benchmarks/LOG.md, and what is followed by a commit (`density.py` at 7be348a). Names are read from the source; nothing is imported.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("saefast", "triton_kernels", "csrc", "tests", "benchmarks", "docs", "examples")
FILES = [
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts
]
PATHS = {f"/{path.relative_to(ROOT)}" for path in (*FILES, *ROOT.glob("*.*"))}
PYTHON = [path for path in FILES if path.suffix == ".py"]
CODE = [path for path in FILES if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]

A_PATH = re.compile(rf"(?<![\w./<-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w(?![\w.]*[*<{{])")
A_FILE = re.compile(r"(?<![\w./<>*-])(?:[a-z][\w-]*/)*[a-zA-Z_]\w*\.(?:py|cpp|h|cu|cuh|sh|md)\b(?![\w<*(])")
DOTTED = re.compile(r"(?<![\w./-])(?:saefast|tests|benchmarks)(?!\.md)(?:\.[A-Za-z_]\w*)+")
SHORT = re.compile(
    r"`([A-Za-z_]\w*)\.(?!(?:py|cpp|h|md|sh|json|jsonl|html|png|pt|npz|safetensors)`)([A-Za-z_]\w*)(?:\([^`]*\))?`"
)
HISTORY = re.compile(r"`[^`\n]+` at [0-9a-f]{7}\b")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


# What there is


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def names_of(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """What a module or a class defines, by name, with the statement that does it."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (((alias.asname or alias.name).split(".")[0], node) for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [name for target in targets for name in ast.walk(target)]
            yield from ((name.id, node) for name in found if isinstance(name, ast.Name))
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from names_of(
                [inner for inner in ast.walk(node) if inner is not node and isinstance(inner, ast.stmt)]
            )


def attributes(cls: ast.ClassDef) -> set[str]:
    """Of a class and its instances, without those of its bases."""
    own = {name for name, _ in names_of(cls.body)}
    inner = (
        node for node in ast.walk(cls) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    )
    return own | {node.attr for node in inner if node.value.id == "self" and isinstance(node.ctx, ast.Store)}


@cache
def modules() -> dict[str, dict[str, ast.AST]]:
    """Dotted name -> what it defines."""
    found = {}
    for path in PYTHON:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[: -1 if parts[-1] == "__init__" else None]
        dotted = ".".join(("saefast", *parts) if parts[0] == "triton_kernels" else parts)
        names = dict(names_of(tree(path).body))
        listed = ast.unparse(names["__all__"]) if "__all__" in names else ""
        found[dotted] = {
            name: node
            for name, node in names.items()
            if path.name == "__init__.py"
            or repr(name) in listed
            or not isinstance(node, (ast.Import, ast.ImportFrom))
        }
    return found


@cache
def classes() -> dict[str, set[str] | None]:
    """Name -> attributes, with those of the bases; None if a base is not ours, which may have any."""
    nodes = [
        node for names in modules().values() for node in names.values() if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, set[str] | None] = {}
    ours = {node.name for node in nodes} | {"NamedTuple", "Protocol", "Exception", "object"}
    for _ in range(4):  # as deep as classes of ours are derived from each other
        for node in nodes:
            bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
            known = (
                [found.get(base, set()) for base in bases if base != node.name]
                if set(bases) <= ours
                else [None]
            )
            if None in known:
                found.setdefault(node.name, None)  # another class of that name may say more
            else:
                found[node.name] = (found.get(node.name) or set()).union(attributes(node), *known)
    return found


@cache
def written() -> set[tuple[str, str]]:
    """(a, b) of every a.b in the code."""
    nodes = (node for path in PYTHON for node in ast.walk(tree(path)))
    return {
        (n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }


# What is said


def prose(path: Path) -> str:
    """Docstrings and comments of a file, or the whole page."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    if path in CODE:
        return "\n".join(re.findall(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL))
    said = re.findall(r"#[ :].*", text)
    for node in ast.walk(tree(path)):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if alone and isinstance(node.value.value, str):
            said.append(node.value.value)
    return "\n".join(said)


def exists(pointer: str) -> bool:
    """Whether the path of some file ends with it, or that of some folder."""
    return any(f"/{pointer}/" in f"{path}/" for path in PATHS)


def defined(dotted: str) -> bool:
    """Whether the module exists and has the name, and the class its attribute."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        module, names = ".".join(parts[:n]), parts[n:]
        if module in modules():
            break
        if any(other.startswith(f"{module}.") for other in modules()):
            return not names
    else:
        return False
    if not names or names[0] in {"_C", "_cuda"}:  # the compiled extensions
        return True
    if names[0] not in modules()[module]:
        return False
    of_class = classes().get(names[0], set())
    return len(names) == 1 or of_class is None or names[1] in of_class


def short_is_right(name: str, other: str) -> bool:
    """Whether `name.other` is right, or not ours."""
    if name in FOLDERS:
        return True  # looked up as a dotted name
    if name in classes():
        found = classes()[name]
        return found is None or other in found
    ours = [names for dotted, names in modules().items() if "." in dotted and dotted.split(".")[-1] == name]
    return not ours or any(other in names for names in ours) or (name, other) in written()


def stale(path: Path) -> list[str]:
    text = HISTORY.sub("", prose(path))
    found = [pointer for pointer in A_PATH.findall(text) if not exists(pointer.rstrip("/."))]
    files = [
        pointer for pointer in A_FILE.findall(text) if "/" not in pointer or exists(pointer.split("/")[0])
    ]
    found += [pointer for pointer in files if not exists(pointer)]
    found += [pointer for pointer in DOTTED.findall(text) if not defined(pointer)]
    found += [f"{name}.{other}" for name, other in SHORT.findall(text) if not short_is_right(name, other)]
    if path.suffix == ".md":
        found += [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("place", ["pages", *FOLDERS])
def test_pointers_lead_somewhere(place):
    paths = (
        PAGES
        if place == "pages"
        else [path for path in (*PYTHON, *CODE) if path.is_relative_to(ROOT / place)]
    )
    found = {str(path.relative_to(ROOT)): stale(path) for path in paths}
    assert {path: pointers for path, pointers in found.items() if pointers} == {}


def test_a_stale_pointer_is_found(tmp_path):
    right = (
        "saefast/engine/step.py, splice.py, drop-in/pytorch.md, saefast.interp.splice.evaluate_in_model, `SAE.forward`, "
        "`roofline.floor_ms`, `trainer.optimizer`, `torch.nothing`, tests/test_*.py, other/folder.py, saefast.Trainer.fit, `gone.py` at 7be348a"
    )
    wrong = [
        "saefast/nothing.py",
        "nothing_at_all.py",
        "saefast.interp.nothing",
        "saefast.Trainer.nothing",
        "saefast.engine.step.SAE",  # which is imported there at most
    ]
    short = ["ShuffleBuffer.nothing", "roofline.nothing"]
    page = tmp_path / "page.md"
    page.write_text(
        f"{right}\n[link](nothing.html)\n{' '.join(wrong)} {' '.join(f'`{one}`' for one in short)}\n"
    )
    assert stale(page) == [*wrong, *short, "nothing.html"]
