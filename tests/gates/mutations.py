"""Changes the package in one place at a time, and says whether the tests notice: those of `make test`, and all of them.

    nice python -m tests.gates.mutations                              40 mutants
    nice python -m tests.gates.mutations --seed 1 --count 10 --only triton_kernels/
    nice python -m tests.gates.mutations --only saefast/engine/auxk.py --line 57
    nice python -m tests.gates.mutations --only saefast/engine/step.py saefast/engine/auxk.py --quick --count 80

The files of the checkout stay as they are: a mutant is a file in a temporary folder, and a `sitecustomize` beside it imports
it in place of the original in every process that tests start. A mutant runs the tests that belong to its file until one fails:
the closest (with --closest these alone), those of `make test`, then (not with --quick) those that only `make test-all` runs.
At the end: the share noticed, by file. Some mutants do the same as the original: a survivor has to be read.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import runpy
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers import kernels  # before triton, which is loaded once for all mutants

ROOT = Path(__file__).parents[2]
# How the files of a part of the package begin, and the tests that belong to them, those first that notice most in least time.
# The longest beginning counts.
BELONGS = {
    "saefast/reference": "tests/test_reference.py tests/test_reference_cpu.py tests/engine tests/autograd",
    "saefast/engine/": "tests/engine/test_step_metrics.py tests/engine/test_architectures.py tests/engine tests/train/test_trainer.py",
    "saefast/native/": "tests/native/test_step.py tests/native/test_given.py tests/native/test_encode.py tests/native/test_topk.py",
    "saefast/activations/": "tests/activations",
    "saefast/formats/": "tests/formats",
    "saefast/config/": "tests/config",
    "saefast/config/recipes": "tests/config/test_recipe_numbers.py tests/config/test_recipes.py tests/config/test_units.py",
    "saefast/train/": "tests/train",
    "saefast/train/end_to_end": "tests/train/test_end_to_end.py tests/train/test_end_to_end_fit.py tests/interp/test_splice_rows.py",
    "saefast/train/memory": "tests/train/test_memory.py",
    "saefast/train/run/": "tests/train",
    "saefast/train/schedules": "tests/train/test_schedules.py tests/config/test_recipes.py tests/train/test_trainer.py",
    "triton_kernels/": "tests/kernels",
}
SWAPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in", "is": "is not"}
SWAPS |= {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "@": "+", "&": "|", "and": "or", "or": "and"}
SAYS_ONLY = (
    ast.Assert | ast.Raise | ast.JoinedStr
)  # checks of our own calls, as zip's `strict` is, and messages
REDIRECT = """
import importlib.util, sys

class Redirect:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            return importlib.util.spec_from_file_location(name, {file!r}, submodule_search_locations={inside!r})

sys.meta_path.insert(0, Redirect)
"""
CLOSEST = 2  # so many of BELONGS, and the test named after the file, run by themselves before all do
LIMIT = 900  # seconds, for a loop without end
fork = multiprocessing.get_context("fork")


class Mutant(NamedTuple):
    path: Path  # of the original, from ROOT
    line: int
    start: int  # in bytes
    end: int
    text: str  # what stands there instead


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every change that we know how to make to a file. Docstrings, annotations and messages stay."""
    source = (ROOT / path).read_bytes()
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))

    def change(node: ast.expr | ast.stmt, start: int, end: int, text: str) -> Iterator[Mutant]:
        try:  # without the operand, or around it, a bracket may be missing
            compile(source[:start] + text.encode() + source[end:], path, "exec")
        except SyntaxError:
            return
        yield Mutant(path, node.lineno, start, end, text)

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        return begins[node.lineno - 1] + node.col_offset, begins[node.end_lineno - 1] + node.end_col_offset

    def operator(left: ast.expr, right: ast.expr, after: str = "") -> Iterator[Mutant]:
        start, end = span(left)[1], span(right)[0]
        gap = source[start:end].decode()
        old = gap.strip(" ()\n" + after)
        if old in SWAPS:
            yield from change(left, start, end, gap.replace(old, SWAPS[old]))

    def visit(node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, SAYS_ONLY) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            return
        if isinstance(node, ast.Compare):
            yield from operator(node.left, node.comparators[0])
        elif isinstance(node, ast.BinOp):
            yield from operator(node.left, node.right)
            if isinstance(node.op, ast.Add | ast.Sub):  # the second term is dropped
                yield from change(node, span(node.left)[1], span(node)[1], "")
        elif isinstance(node, ast.AugAssign):
            yield from operator(node.target, node.value, "=")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # for what it does, or checks
            yield from change(node, *span(node), "pass")
        elif isinstance(node, ast.BoolOp):
            yield from operator(*node.values[:2])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield from change(node, span(node)[0], span(node.operand)[0], "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            new = not node.value if isinstance(node.value, bool) else node.value + 1
            yield from change(node, *span(node), repr(new))
        elif isinstance(node, ast.If | ast.IfExp):
            start, end = span(node.test)
            yield from change(node.test, start, end, f"(not ({source[start:end].decode()}))")
        for child in parts(node):
            yield from visit(child)

    def parts(node: ast.AST) -> Iterable[ast.AST]:
        if isinstance(node, ast.FunctionDef):
            return [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]
        if isinstance(node, ast.AnnAssign):
            return filter(None, [node.value])
        return ast.iter_child_nodes(node)

    yield from visit(ast.parse(source))


def part_of(name: str) -> str:
    return max((begin for begin in BELONGS if name.startswith(begin)), key=len, default="")


def sample(only: list[str], line: int | None, count: int, seed: int) -> list[Mutant]:
    """From each part of BELONGS in turn, and there from each file in turn, one of its mutants."""
    paths = sorted([*ROOT.glob("saefast/**/*.py"), *ROOT.glob("triton_kernels/*.py")])
    names, parts = [str(path.relative_to(ROOT)) for path in paths], []
    for begin in BELONGS:
        draw = random.Random(f"{seed} {begin}")
        chosen = [Path(name) for name in names if part_of(name) == begin and name.startswith(tuple(only))]
        files = [[m for m in mutants_of(path) if line in (None, m.line)] for path in chosen]
        for file in files:
            draw.shuffle(file)
        draw.shuffle(files)
        parts.append([mutant for turn in zip_longest(*files) for mutant in turn if mutant])
    return [mutant for turn in zip_longest(*parts) for mutant in turn if mutant][:count]


def tests_of(path: Path) -> tuple[list[str], list[str]]:
    """The closest, and all of them. The one named after the file before all others."""
    tests = BELONGS[part_of(path.as_posix())].split()
    own = [f"{folder}/test_{path.stem}.py" for folder in tests]
    own = [test for test in own if (ROOT / test).exists()]
    return own + tests[:CLOSEST], own + tests


class Watch:
    """Runs the tests of `make test` first, and sends the first failure and whether it is of a slow test."""

    def __init__(self, sender: Connection) -> None:
        self.sender = sender

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.sender.send((report.nodeid, False))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.sender.send((report.nodeid, "slow" in report.keywords))


def session(mutant: Mutant, tests: list[str], quick: bool, folder: Path, sender: Connection) -> None:
    """In a process of its own: the tests, with the mutant in place of its original."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ["PYTHONPATH"], sys.dont_write_bytecode = str(folder), True  # the first for processes of tests
    source, package = (ROOT / mutant.path).read_bytes(), mutant.path.name == "__init__.py"
    file = folder / "mutant.py"
    file.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
    module = ".".join((mutant.path.parent if package else mutant.path.with_suffix("")).parts)
    module = module if module.startswith("saefast") else f"saefast.{module}"
    inside = [str(ROOT / mutant.path.parent)] if package else None
    (folder / "sitecustomize.py").write_text(REDIRECT.format(module=module, file=str(file), inside=inside))
    runpy.run_path(str(folder / "sitecustomize.py"))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    marked = "not gpu and not slow" if quick else "not gpu"
    options = ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-m", marked]
    status = pytest.main([*options, *tests], plugins=[Watch(sender)])
    sender.send((f"pytest ends with {status!r}" if status else "", False))


def run(mutant: Mutant, quick: bool, closest: bool) -> tuple[str, bool]:
    """The first test that notices, "" if there is none, and whether it is a slow one."""
    near, tests = tests_of(mutant.path)
    found = noticed(mutant, near, True)  # to collect all of them takes longer than most mutants live
    return found if found[0] or closest else noticed(mutant, tests, quick)


def noticed(mutant: Mutant, tests: list[str], quick: bool) -> tuple[str, bool]:
    receiver, sender = fork.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        child = fork.Process(target=session, args=(mutant, tests, quick, Path(folder), sender))
        child.start()
        sender.close()
        try:
            if receiver.poll(LIMIT):
                return receiver.recv()
            return f"no end after {LIMIT} s", False
        except EOFError:
            return "the process dies", False
        finally:
            child.terminate()
            child.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="what the path of the file begins with")
    parser.add_argument("--line", type=int)
    parser.add_argument("--quick", action="store_true", help="only the tests of `make test`")
    parser.add_argument("--closest", action="store_true", help="only the closest tests, see CLOSEST")
    options = parser.parse_args()
    assert not kernels.ON_GPU and importlib.import_module("triton.language")
    importlib.import_module("hypothesis")  # once for all mutants
    counts: defaultdict[Path, Counter[str]] = defaultdict(Counter)
    for mutant in sample(options.only, options.line, options.count, options.seed):
        begun = time.perf_counter()
        test, slow = run(mutant, options.quick, options.closest)
        by = "nothing" if not test else "make test-all alone" if slow else "make test"
        counts[mutant.path][by] += 1
        old = (ROOT / mutant.path).read_bytes()[mutant.start : mutant.end].decode()
        print(
            f"{mutant.path}:{mutant.line}: {' '.join(old.split())!r} becomes {' '.join(mutant.text.split())!r}"
        )
        print(f"    {by} ({time.perf_counter() - begun:.0f} s) {test}", flush=True)
    for path, found in sorted(counts.items()):
        print(
            f"{path}: {1 - found['nothing'] / found.total():.0%} of {found.total()} noticed, by {dict(found)}"
        )


if __name__ == "__main__":
    main()
