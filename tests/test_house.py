"""The house keeps its order: who imports whom, what is packaged, what no file may contain."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "scenes": set(),
    "models": {"scenes"},
    "probes": {"scenes", "models"},
    "steering": {"scenes", "models", "probes"},
    "alignment": {"scenes", "models", "probes"},
    "experiments": {"scenes", "models", "probes", "steering", "alignment"},
    "dashboards": {"scenes", "models", "probes", "steering", "alignment", "experiments"},
}
"""Folder by folder, from the bottom of the house to its roof; every one may import itself."""

LONG_FILES: dict[str, str] = {}
"""Files allowed more than 300 lines: path -> the reason it is one noun all the same."""


def house_files() -> list[Path]:
    return sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def all_python() -> list[Path]:
    return house_files() + sorted((ROOT / "tests").rglob("*.py"))


def text_files() -> list[Path]:
    """Everything a person reads or a tool runs, outside results and environments."""
    named = [ROOT / name for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run")]
    return [*all_python(), *named, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Full dotted names of everything a module of `package` imports, relative imports resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def package_of(path: Path) -> str:
    return ".".join(["chiasm", *path.relative_to(ROOT).parent.parts])


def rooms_imported(source: str, package: str) -> set[str]:
    """The folders of the house that a module imports from."""
    found = (re.match(r"chiasm\.(\w+)", name) for name in imported_modules(source, package))
    return {match[1] for match in found if match}


@pytest.mark.parametrize("path", house_files(), ids=ids(house_files()))
def test_imports_never_go_up(path):
    room = path.relative_to(ROOT).parts[0]
    up = rooms_imported(path.read_text(encoding="utf-8"), package_of(path)) - MAY_IMPORT[room] - {room}
    assert not up, f"{path.relative_to(ROOT)} imports {', '.join(sorted(up))}; {room} may import {MAY_IMPORT[room]}"


@pytest.mark.parametrize(
    ("source", "package", "rooms"),
    [
        ("from ..probes.measure import measure", "chiasm.models", {"probes"}),
        ("from .. import probes", "chiasm.models", {"probes"}),
        ("from ...experiments import run", "chiasm.models.organism", {"experiments"}),
        ("from ..spans import Spans", "chiasm.models.organism", {"models"}),
        ("import chiasm.experiments.run as r", "chiasm.scenes", {"experiments"}),
        ("from chiasm import probes", "chiasm.scenes", {"probes"}),
        ("def f():\n    from ..experiments.run import Run", "chiasm.probes", {"experiments"}),
        ("import importlib\nimportlib.import_module('chiasm.probes.probe')", "chiasm.scenes", {"probes"}),
        ("from . import anatomy\nimport torch", "chiasm.models", {"models"}),
    ],
)
def test_the_import_rule_sees_every_form_of_import(source, package, rooms):
    assert rooms_imported(source, package) == rooms


def test_every_package_folder_is_declared():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    in_tree = {package_of(path) for path in house_files()}
    assert set(settings["packages"]) == in_tree
    assert settings["package-dir"] == {f"chiasm.{room}": room for room in MAY_IMPORT if (ROOT / room).is_dir()}
    for path in house_files():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent.relative_to(ROOT)} has no __init__.py"
    assert not (ROOT / "__init__.py").exists(), "chiasm is a namespace package: no __init__.py at the top"


@pytest.mark.parametrize("path", house_files(), ids=ids(house_files()))
def test_a_file_is_one_noun(path):
    name = str(path.relative_to(ROOT))
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300 or name in LONG_FILES, f"{name} has {lines} lines: two nouns? If not, say why in LONG_FILES"


PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}


def unsafe_loading(source: str) -> list[str]:
    """What a module does that could run code from a data file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [f"calls {called}"] * (called in ("torch.load", "torch.save", "pd.read_pickle"))
            found += [f"calls {called}"] * called.endswith(".to_pickle")
            for keyword in node.keywords:
                if keyword.arg in ("trust_remote_code", "allow_pickle") and ast.unparse(keyword.value) == "True":
                    found.append(f"passes {keyword.arg}=True")
        elif isinstance(node, ast.arguments):
            defaults = zip(node.args[-len(node.defaults) :] if node.defaults else [], node.defaults, strict=True)
            both = [*defaults, *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            found += [f"defaults {a.arg} to True" for a, d in both if a.arg == "trust_remote_code" and ast_true(d)]
    return found


def ast_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize("path", house_files(), ids=ids(house_files()))
def test_nothing_is_unpickled_and_no_remote_code_runs_unasked(path):
    assert not unsafe_loading(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "def f(*, trust_remote_code=True): ...",
        "def f(a, trust_remote_code=True): ...",
    ],
)
def test_the_loading_rule_sees_each_case(source):
    assert unsafe_loading(source)


# Put together from pieces, so that this file obeys its own rule.
MACHINE_PATH = re.compile("(?<![\\w.])(?:" + "|".join(f"/{top}/" for top in ("home", "root", "Users", "work")) + ")\\w")


@pytest.mark.parametrize("path", text_files(), ids=ids(text_files()))
def test_no_path_of_someones_machine(path):
    found = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
    assert not found, f"{path.relative_to(ROOT)}: {found[0]}… is a path of one machine"


def test_constraints_pin_exact_versions_and_nothing_else():
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower() for requirement in wanted} - {"chiasm"}
    assert names <= pinned, f"not pinned: {names - pinned}"


IMPORTED_AS = {
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "transformer-lens": "transformer_lens",
}
UNSEEN = {
    "torchvision": "transformers' image processors are built on it",
    "pyarrow": "pandas writes parquet with it",
}
"""Dependencies that another library imports for us."""


def declared(*extras: str) -> set[str]:
    """Import names of what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower() for requirement in wanted}
    return {IMPORTED_AS.get(name, name) for name in names}


def third_party() -> set[str]:
    names = {
        name.split(".")[0]
        for path in house_files()
        for name in imported_modules(path.read_text(encoding="utf-8"), package_of(path))
    }
    return names - set(sys.stdlib_module_names) - {"chiasm"}


def test_every_dependency_is_used():
    unused = declared() - set(UNSEEN) - third_party()
    assert not unused, f"in pyproject.toml but never imported, a download for nothing: {unused}"


def test_every_import_is_a_declared_dependency():
    missing = third_party() - declared("views", "lemma")
    assert not missing, f"imported but not in pyproject.toml: {missing}"
