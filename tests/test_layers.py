"""The house: a package imports only from lower tiers, no import runs in a circle, the text stages load no torch."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. What stands in one tier does not import from another member of it.
TIERS = (
    {"tilemix.errors"},
    {"tilemix.inputs", "tilemix.samplers", "tilemix.system"},
    {"tilemix.colors", "tilemix.deltas"},
    {"tilemix.prompts"},
    {"tilemix.drafts", "tilemix.modelfile", "tilemix.pictures", "tilemix.request"},
    {"tilemix.adapters"},
    {"tilemix.conversion", "tilemix.weights"},
    {"tilemix.pipelines"},
    {"tilemix.planning"},
    {"tilemix.render"},
    {"tilemix.drawing", "tilemix.models"},
    {"tilemix.catalogue", "tilemix.studio", "tilemix.tuning", "tilemix.calibration"},
    {"tilemix.cli"},
    {"tilemix.__main__", "predict", "miniature", "tools"},
    {"bench"},
)
BESIDE_THE_IMAGE = {"tilemix.tuning", "tilemix.studio", "miniature", "tools", "bench"}
TIER = {room: tier for tier, rooms in enumerate(TIERS) for room in rooms}
WITHOUT_TORCH = (
    "tilemix.colors.nearest",
    "tilemix.deltas",
    "tilemix.drafts.draft",
    "tilemix.prompts.mix",
    "tilemix.prompts.template",
    "tilemix.prompts.rewrite",
    "tilemix.inputs",
    "tilemix.request",
    "tilemix.samplers",
    "tilemix.conversion.convert",
    "tilemix.weights",
    "tilemix.modelfile",
    "tilemix.pictures.measure",
    "tilemix.pictures.metrics",
    "tilemix.pictures.record",
    "tilemix.pictures.reading",
    "tilemix.pictures.files",
    "tilemix.pictures.png",
    "tilemix.pipelines.settings",
    "tilemix.catalogue.cluster",
    "tilemix.catalogue.mixes",
    "tilemix.catalogue.results",
    "tilemix.catalogue.run",
    "tilemix.catalogue.worker",
    "tilemix.cli",
    "tilemix.system.step_log",
    "tilemix.studio.__main__",
    "tilemix.studio.web.page",
    "tilemix.studio.store.migrations.versions.first_tables",
    "tilemix.studio.store.migrations.versions.errors_as_data",
    "tools.cog_schema",
)


def name_of(path: Path) -> str:
    """The module's dotted name; a package's `__init__` has the package's."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {
    name_of(path): path
    for place in ("tilemix", "miniature", "tools", "bench")
    for path in sorted((ROOT / place).rglob("*.py"))
} | {"predict": ROOT / "predict.py"}


def room_of(module: str) -> str:
    """The package, or the loose module, that a module stands in."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tilemix" else parts[0]


@cache
def imports_of(name: str, *, only_at_load: bool = False) -> set[str]:
    """The modules of ours that a module imports; `only_at_load` leaves out functions and TYPE_CHECKING."""
    found = set()
    nodes = [ast.parse(PATHS[name].read_text())]
    while nodes:
        node = nodes.pop()
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if only_at_load and is_late:
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in PATHS else str(node.module) for one in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {one for one in found if one in PATHS} - {"tilemix"}


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"tilemix"}))
def test_a_module_imports_only_from_lower_tiers(name):
    room = room_of(name)
    assert room in TIER, f"{room} has no tier: give it one here"
    for imported in imports_of(name):
        target = room_of(imported)
        assert target == room or TIER[target] < TIER[room], f"{name} imports {imported}"


def test_every_room_of_the_list_is_there():
    assert set(TIER) == {room_of(name) for name in PATHS} - {"tilemix"}


def test_no_modules_import_one_another_in_a_circle():
    """Types too: two modules that know each other's types are one module, or a third is missing."""
    packages = {name for name, path in PATHS.items() if path.name == "__init__.py"}
    graph = {name: imports_of(name) - packages for name in set(PATHS) - packages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_training_imports_what_the_image_does_not_have():
    image = (ROOT / "requirements.txt").read_text()
    for name, path in PATHS.items():
        found = set(re.findall(r"^\s*(?:from|import) (peft|scipy)\b", path.read_text(), re.MULTILINE))
        assert not found or room_of(name) in {"tilemix.tuning", "miniature", "bench"}, (
            f"{name} imports {found}"
        )
        assert not any(f"{name}==" in image for name in found)


def test_what_the_image_leaves_out_is_not_imported_by_what_serves():
    """.dockerignore keeps the studio and the training out of the image; only their own verbs may ask for them."""
    for name in PATHS:
        if room_of(name) in BESIDE_THE_IMAGE:
            continue
        for imported in imports_of(name, only_at_load=True):
            assert room_of(imported) not in BESIDE_THE_IMAGE


def test_importing_the_text_stages_does_not_load_torch():
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({module!r}); assert not {{'torch', 'diffusers'}} & set(sys.modules), {module!r}\n"
        for module in WITHOUT_TORCH
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
