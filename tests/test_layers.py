"""Dependencies point one way, and importing the library brings in only what it needs."""

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import fastweights

SOURCE = Path(fastweights.__file__).parent
ANYTHING = None
ALLOWED = {  # what each package may import besides itself
    "__init__": ANYTHING,  # public names, loaded lazily
    "__main__": {"cli"},
    "errors": set(),
    "machine": set(),
    "specs": {"errors"},
    "distributed": {"errors"},
    "ops": {"machine", "errors"},
    "cores": {"ops", "specs", "errors"},
    "models": {"cores", "ops", "specs"},
    "data": {"errors"},
    "environments": {"errors"},
    "tasks": {"data", "environments", "specs", "errors"},
    "objectives": {"models", "cores", "tasks", "data", "distributed", "specs", "errors"},
    "recipes": {"objectives", "models", "cores", "tasks", "specs", "machine", "errors"},
    "training": {
        "recipes", "objectives", "models", "cores", "ops", "tasks", "data", "distributed", "specs", "errors",
    },
    "analysis": {"training", "recipes", "environments", "objectives", "tasks", "models", "cores", "errors"},
    "bench": ANYTHING,
    "doctor": ANYTHING,
    "cli": ANYTHING,
}  # fmt: skip
MODULES = sorted(SOURCE.rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    """The direct children of `fastweights` that a module imports, also within functions."""
    package = ".".join(["fastweights", *path.relative_to(SOURCE).parent.parts])
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names += [f"{module}.{alias.name}" for alias in node.names]
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "fastweights" and len(part) > 1}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_dependencies_point_one_way(path):
    package = path.relative_to(SOURCE).with_suffix("").parts[0]
    assert package in ALLOWED, f"{package} is new: say in ALLOWED what it may import"
    if ALLOWED[package] is not ANYTHING:
        above = imported_packages(path) - ALLOWED[package] - {package}
        assert not above, f"{package} must not import {', '.join(sorted(above))}"


@pytest.mark.parametrize("module", ["fastweights", "fastweights.cores"])
def test_importing_is_light(module):
    command = f"import sys, {module}; print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in finished.stdout.split()}
    assert module.partition(".")[0] in loaded
    assert not loaded & {"rich", "pydantic", "filelock", "yaml", "matplotlib", "pytest"}
