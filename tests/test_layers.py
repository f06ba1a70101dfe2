"""The package's layers: a module imports only from lower ones, and the text stages stay free of torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tilemix"

LAYERS = (
    {"errors", "garbage", "project"},
    {"cielab", "color_values", "colors", "model_index", "modelfile", "prompt_text"},
    {"mix", "templates", "weights"},
    {"rewriter", "request"},
    {
        "measure",
        "provenance",
        "image_file",
        "png",
        "schedulers",
        "adapters",
        "attention",
        "compilation",
        "conditioning",
        "settings",
        "speed",
    },
    {"pipeline"},
    {"render"},
    {"training", "studio"},
    {"cli", "__main__", "cog_schema"},
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
WITHOUT_TORCH = (
    "colors",
    "mix",
    "templates",
    "rewriter",
    "request",
    "weights",
    "modelfile",
    "model_index",
    "measure",
    "provenance",
    "image_file",
    "png",
    "settings",
    "cli",
    "studio.__main__",
    "studio.page",
    "studio.migrations.versions.first_tables",
)


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """The first part below `tilemix` of every import in a file, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tilemix":
            parts = node.module.split(".")[1:]
            names = {alias.name for alias in node.names} - {"__version__"}
            found |= {parts[0]} if parts else names
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tilemix.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name} imports relatively"
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_layers(path):
    name = name_of(path)
    assert name in LEVEL, f"{name} has no layer: give it one here"
    for imported in imports_of(path):
        in_one_layer = imported == name or (name, imported) in SAME_LEVEL
        assert in_one_layer or LEVEL[imported] < LEVEL[name], f"{name} imports {imported}"


# Inside one layer, from the whole to its parts.
SAME_LEVEL = {
    ("color_values", "cielab"),
    ("color_values", "colors"),
    ("image_file", "png"),
    ("image_file", "provenance"),
    ("model_index", "modelfile"),
    ("modelfile", "prompt_text"),
    ("settings", "speed"),
    ("__main__", "cli"),
}


def test_only_training_imports_what_the_image_does_not_have():
    image = (PACKAGE.parent / "requirements.txt").read_text()
    for path in modules():
        found = set(re.findall(r"^\s*(?:from|import) (peft|scipy)\b", path.read_text(), re.MULTILINE))
        assert not found or path.is_relative_to(PACKAGE / "training"), f"{path.name} imports {found}"
        assert not any(f"{name}==" in image for name in found)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_importing_it_does_not_load_torch(module):
    code = f"import sys, tilemix.{module}; sys.exit(int(bool({{'torch', 'diffusers'}} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
