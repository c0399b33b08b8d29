"""Imports run one way between rooms, without a circle, and heavy packages come late: derived from the code, never from a list of modules.

A failure prints the line that crosses a border, as `file:line: import`.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "study", "analysis")


class Import(NamedTuple):
    """One import of one of our modules, or of a third-party package, and where it stands."""

    source: str
    target: str
    line: str
    late: bool


def modules() -> dict[str, Path]:
    """Our modules by name, packages too."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imports() -> Iterator[Import]:
    """Every import statement of our packages, also those inside functions (`late`), ours resolved to the module that it names."""
    for source, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        top |= {id(n) for node in tree.body if isinstance(node, ast.If | ast.Try) for n in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                names = [n if (n := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names]
            else:
                continue
            for name in names:
                line = f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
                yield Import(source, name, line, id(node) not in top)


IMPORTS = list(imports())


def room(module: str) -> str:
    """The folder of a module."""
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle among the edges, or nothing."""
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def lines(found: list[Import]) -> str:
    return "\n" + "\n".join(i.line for i in found)


def test_no_circle_between_files() -> None:
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for i in IMPORTS:
        if i.target in MODULES:
            edges[i.source].add(i.target)
    ring = circle(edges)
    assert not ring, lines([i for i in IMPORTS if (i.target, i.source) in pairwise(ring)])


def test_no_circle_between_rooms() -> None:
    """The top of a package is no room: its command stands above the rooms, its specification below them."""
    edges: dict[str, set[str]] = {}
    for i in IMPORTS:
        if i.target in MODULES and {(a := room(i.source)), (b := room(i.target))}.isdisjoint(PACKAGES) and a != b:
            edges.setdefault(a, set()).add(b)
    ring = circle(edges)
    assert not ring, lines([i for i in IMPORTS if i.target in MODULES and (room(i.target), room(i.source)) in pairwise(ring)])


@pytest.mark.parametrize(
    ("package", "banned", "home"),
    [
        ("models", ("study", "analysis", "ray", "pandas"), ()),
        ("study", ("analysis",), ()),
        ("study", ("ray",), ("study.tune",)),
        ("analysis", ("torch", "ray"), ()),
        ("analysis", ("study.train", "study.tune", "study.run"), ()),
        ("study", ("study.tune",), ("study.tune", "study.run", "study.course")),
    ],
)
def test_what_a_package_may_import(package: str, banned: tuple[str, ...], home: tuple[str, ...]) -> None:
    def inside(name: str, places: tuple[str, ...]) -> bool:
        return any(name == place or name.startswith(f"{place}.") for place in places)

    wrong = [i for i in IMPORTS if inside(i.source, (package,)) and inside(i.target, banned) and not inside(i.source, home)]
    assert not wrong, lines(wrong)


def test_the_table_of_rooms_in_contributing_is_what_the_code_does() -> None:
    written = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(("| `models/`", "| `study/", "| `analysis/")):
            name, _, imported = line.strip("|").split("|")
            written[name.strip(" `/").replace("/", ".")] = set(imported.replace("/", ".").replace("`", "").replace(",", "").split())
    found: dict[str, set[str]] = {room(name): set() for name in MODULES if room(name) not in PACKAGES} | {"models": set()}
    for i in IMPORTS:
        if i.target in MODULES and (a := room(i.source)) in found and (b := room(i.target)) not in (a, *PACKAGES):
            found[a].add(b)
    assert written == found


def test_rooms_are_small_and_say_what_they_are() -> None:
    for path in MODULES.values():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert doc, f"{path.relative_to(ROOT)} has no docstring"
        if path.name == "__init__.py":
            files = [p for p in path.parent.glob("*.py") if p.name != "__init__.py"]
            assert len(files) <= MOST_FILES, f"{path.parent.relative_to(ROOT)} holds {len(files)} files"


MOST_FILES = 15
HEAVY = ("torch", "ray", "pandas", "matplotlib", "scipy", "optuna", "tensorboard")
PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("module", ["study.run", "study.command", "study.records", "models.config", "study.spec"])
def test_what_is_imported_before_the_flags_are_read_is_light(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, module], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert not set(json.loads(done.stdout)) & set(HEAVY)
