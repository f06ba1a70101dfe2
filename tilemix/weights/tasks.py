"""`weights/tasks.json`: which model and which of its LoRAs a named task draws with.

    {
      "rubber_tile": {},
      "host_face": {"model": "flux1-dev", "adapters": {"host_person": 0.7}},
      "science_background": {"model": "flux1-dev", "adapters": {}, "template": "background"}
    }

`model` is a packaged model; without one it is the model that is served. `adapters` are LoRAs of the model's manifest
by name, see `tilemix.prompts.adapter_names`, each with its scale: these alone are in force, and `{}` means none.
Without `adapters` the manifest's own scales count. `template` replaces the manifest's prompt template. An unknown key
is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

import msgspec

from tilemix.errors import LIST_SEPARATOR, ManifestError, RequestError
from tilemix.prompts.adapter_names import find_named, tell_apart
from tilemix.prompts.context import find_near
from tilemix.prompts.template import list_templates
from tilemix.system.json_file import read_json
from tilemix.system.project import ROOT
from tilemix.weights.manifest import MAX_SCALE, MODEL_NAME, list_models, load_manifest

if TYPE_CHECKING:
    from pathlib import Path

FILE = "tasks.json"
MAX_FILE_BYTES = 2**20
MOST_NAMES = 4  # near ones, in a message
SHOWN = 40  # characters of a name in a message


class TaskEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task as the file has it."""

    model: str | None = None  # None: the served one
    adapters: dict[str, float] | None = None  # a LoRA's name -> its scale; None: as the manifest says
    template: str | None = None  # prompt_templates/NAME.json; None: the manifest's


@dataclass(frozen=True, slots=True)
class Task:
    """A task whose model and adapters are known."""

    name: str
    model: str  # the packaged model
    template: str  # prompt_templates/NAME.json
    lora_scales: Mapping[str, float] | None  # by the manifest's file; None: the manifest's own scales


def load_tasks(root: Path = ROOT) -> dict[str, TaskEntry]:
    """Read and check `weights/tasks.json`; without the file there are no tasks.

    Whether a task's model and adapters are there, `find_task` says.

    Raises:
        ManifestError: the file cannot be read, or has an unknown key, a wrong type, name or scale.
    """
    path = root / "weights" / FILE
    if not path.exists():
        return {}
    read = read_json(path, dict[str, object], most=MAX_FILE_BYTES, refuse=ManifestError)
    tasks = {name: _read_entry(name[:SHOWN], entry) for name, entry in read.items()}
    for name, task in tasks.items():
        for key, text in (("key", name), ("model", task.model), ("template", task.template)):
            if text is not None and not MODEL_NAME.fullmatch(text):
                raise ManifestError("task-name", file=FILE, task=name[:SHOWN], key=key, found=text[:SHOWN])
        for adapter, scale in (task.adapters or {}).items():
            if not 0 <= scale <= MAX_SCALE:
                raise ManifestError(
                    "task-scale", file=FILE, task=name, adapter=adapter[:SHOWN], found=scale, most=MAX_SCALE
                )
    return tasks


def find_task(name: str, *, served: str, root: Path = ROOT) -> Task:
    """Return the task `name`.

    Args:
        name: as the request says.
        served: the model of tasks that do not name one.
        root: the project's folder.

    Raises:
        RequestError: there is no such task.
        ManifestError: the file is wrong, or the task names a model, a template or an adapter that is not there, or an
            adapter twice.
    """
    tasks = load_tasks(root)
    entry = tasks.get(name)
    if entry is None:
        known = LIST_SEPARATOR.join(tasks) or "none"
        raise RequestError("task-unknown", field="task", typed=name[:SHOWN], known=known)
    model = entry.model or served
    if entry.model is not None and model not in (models := list_models(root)):
        near = _find_near(model, models)
        raise ManifestError("task-unknown-model", file=FILE, task=name, model=model, near=near)
    template = entry.template
    if template is not None and template not in (templates := list_templates(root)):
        near = _find_near(template, templates)
        raise ManifestError("task-unknown-template", file=FILE, task=name, template=template, near=near)
    manifest = load_manifest(model, root)
    scales = None
    if entry.adapters is not None:
        files = [each.file for each in manifest.adapters if each.kind == "lora"]
        scales = {}
        for adapter, scale in entry.adapters.items():
            found = find_named(adapter, files)
            if len(found) != 1:
                names = tell_apart(found[:MOST_NAMES] or find_near(adapter, files), files)
                raise ManifestError(
                    "task-ambiguous-adapter" if found else "task-unknown-adapter",
                    file=FILE,
                    task=name,
                    adapter=adapter[:SHOWN],
                    model=model,
                    near=LIST_SEPARATOR.join(names) or "none",
                )
            (file,) = found
            if file in scales:  # in another spelling
                raise ManifestError("file-json-repeated", file=FILE, key=f"{name}.adapters.{adapter[:SHOWN]}")
            scales[file] = scale
    return Task(name, model, template or manifest.prompt_template, scales)


def _read_entry(task: str, found: object) -> TaskEntry:
    """Return a task's entry, its keys and types checked.

    Raises:
        ManifestError: a key is unknown, or a value is of another type.
    """

    def need(key: str, value: object, expected: str, *kinds: type) -> None:
        if type(value) not in kinds:  # a bool is not a number
            shown = json.dumps(value, ensure_ascii=False)[:SHOWN]
            raise ManifestError(
                "task-value", file=FILE, task=task, key=key[:SHOWN], found=shown, expected=expected
            )

    need("value", found, "object", dict)
    entry = cast("dict[str, object]", found)
    known = TaskEntry.__struct_fields__
    for key in entry:
        if key not in known:
            raise ManifestError(
                "task-unknown-key", file=FILE, task=task, key=key[:SHOWN], known=LIST_SEPARATOR.join(known)
            )
    for key in ("model", "template"):
        need(key, entry.get(key), "string", str, type(None))
    need("adapters", adapters := entry.get("adapters"), "object", dict, type(None))
    for adapter, scale in cast("dict[str, object]", adapters or {}).items():
        need(f"adapters.{adapter}", scale, "number", int, float)
    return msgspec.convert(entry, TaskEntry)


def _find_near(name: str, known: Iterable[str]) -> str:
    """Return the names that are the most like one, the nearest first."""
    return LIST_SEPARATOR.join(get_close_matches(name, list(known), MOST_NAMES, 0)) or "none"
