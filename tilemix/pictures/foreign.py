"""How other programs say that they made a picture, in the web UIs' terms.

==================================  ========================================================================
A1111, Forge, SD.Next, qDiffusion   `parameters`: a PNG's text chunk, or the UserComment of any format's EXIF
NovelAI                             a PNG's text chunks `Description` and `Comment`, the second one JSON
ComfyUI                             a PNG's text chunk `prompt`, or "prompt:..." in a WebP's EXIF: the graph
==================================  ========================================================================

Of a graph, what leads to its sampler is read. NovelAI's emphasis, `{red}` and `[red]`, becomes `(red:1.05)` and
`(red:0.9524)`, and its round brackets, which mean nothing there, the characters themselves. Everything here is from
outside: what cannot be read is left out.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

from PIL import ExifTags

from tilemix.errors import Message
from tilemix.pictures.infotext import PARAMETERS_KEY, Infotext, parse_infotext

if TYPE_CHECKING:
    from PIL import Image

MAX_TEXT = 2**20  # characters of a text in a picture; a large graph has 100,000
GRAPH_KEY = "prompt"
UNICODE, ASCII = b"UNICODE\0", b"ASCII\0\0\0"
# What Pillow raises for an EXIF segment that is broken.
EXIF_FAULTS = (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error)

# ComfyUI's and NovelAI's samplers, the latter without their "k_" -> the web UIs'.
SAMPLERS = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "uni_pc": "UniPC",
}
NOVELAI_FIXED = {"Clip skip": "2", "ENSD": "31337"}  # what its pictures are made with
NOVELAI_STEP = 1.05  # a brace multiplies by it, a square bracket divides
NOVELAI_MOST = 47  # steps: 9.9, where 10 is the most that the prompt language takes
NOVELAI_SIGNS = {"{": 1, "}": -1, "[": -1, "]": 1}  # steps up or down from there on
NOVELAI_OPENING = {"}": "{", "]": "["}
NOVELAI_SIGN = re.compile(r"[{}\[\]]")
NOVELAI_TEXT = re.compile(r"(?<!\\)[()]")
TEXTS = ("text", "text_g", "string", "value", "text_l")  # inputs of nodes that hold a prompt
MOST_NODES = 10_000


def read_infotext(picture: Image.Image) -> Infotext | None:
    """Return how another program says that it made a decoded picture; None: it does not."""
    exif = _read_exif(picture)
    for text in (exif.get(ExifTags.Base.UserComment), picture.info.get(PARAMETERS_KEY)):
        plain = _decode_comment(text) if isinstance(text, bytes) else text
        if isinstance(plain, str) and plain.strip("\0 \n") and len(plain) <= MAX_TEXT:
            return parse_infotext(plain.strip("\0"))
    graphs = [picture.info.get(GRAPH_KEY), *_find_graphs(exif)]
    for graph in map(_decode_json, graphs):
        if infotext := _Graph(graph).read():
            return infotext
    return _read_novelai(picture)


def _read_exif(picture: Image.Image) -> dict[int, Any]:
    try:
        exif = picture.getexif()
        return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except EXIF_FAULTS:
        return {}


def _decode_comment(data: bytes) -> str | None:
    """Return the text of a UserComment; Exif leaves the byte order of UNICODE open, so the zeros tell it."""
    kind, body = data[:8], data[8:]
    if kind == UNICODE:
        if body.startswith((b"\xff\xfe", b"\xfe\xff")):
            return body.decode("utf-16", "replace")
        is_little = body[1::2].count(0) > body[::2].count(0)
        return body.decode("utf-16-le" if is_little else "utf-16-be", "replace")
    return (body if kind in (ASCII, bytes(8)) else data).decode("utf-8", "replace")


def _find_graphs(exif: Mapping[int, Any]) -> Iterator[str]:
    for value in exif.values():
        if isinstance(value, str) and value.startswith(f"{GRAPH_KEY}:"):
            yield value.removeprefix(f"{GRAPH_KEY}:")


def _decode_json(text: object) -> Any:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        return None
    try:
        return json.loads(text)  # ComfyUI writes NaN, which is not JSON
    except (ValueError, RecursionError):
        return None


def _read_novelai(picture: Image.Image) -> Infotext | None:
    comment, description = _decode_json(picture.info.get("Comment")), picture.info.get("Description")
    if not isinstance(comment, dict) or "uc" not in comment:
        return None
    prompt = description if isinstance(description, str) else _show(comment.get("prompt"))
    width, height = comment.get("width", picture.width), comment.get("height", picture.height)
    parameters = {
        "Steps": comment.get("steps"),
        "Sampler": _name_sampler(_show(comment.get("sampler")).removeprefix("k_")),
        "CFG scale": comment.get("scale"),
        "Seed": comment.get("seed"),
        "Size": f"{_show(width)}x{_show(height)}",
        "Denoising strength": comment.get("strength"),
    }
    prompt, is_changed = _convert_emphasis(prompt.strip())
    negative_prompt, is_other_changed = _convert_emphasis(_show(comment["uc"]).strip())
    changed = {"prompt": is_changed, "negative_prompt": is_other_changed}
    notes = tuple(Message("repeat-emphasis", {}, field) for field in changed if changed[field])
    return Infotext(prompt, negative_prompt, _keep_known(parameters) | NOVELAI_FIXED, notes)


def _convert_emphasis(text: str) -> tuple[str, bool]:
    """Return a prompt of NovelAI in the prompt language, and whether it holds emphasis.

    Source: NovelAI's documentation, "Strengthening and weakening vectors", https://docs.novelai.net
    """
    waiting: list[re.Match[str]] = []
    paired: list[re.Match[str]] = []
    for sign in NOVELAI_SIGN.finditer(text):
        if sign[0] not in NOVELAI_OPENING:
            waiting.append(sign)
        elif waiting and waiting[-1][0] == NOVELAI_OPENING[sign[0]]:
            paired += (waiting.pop(), sign)
    written, place, steps = [], 0, 0
    for sign in sorted(paired, key=re.Match.start):
        written.append(_weigh(text[place : sign.start()], steps))
        place, steps = sign.end(), steps + NOVELAI_SIGNS[sign[0]]
    return "".join([*written, _weigh(text[place:], 0)]), bool(paired)


def _weigh(text: str, steps: int) -> str:
    escaped = NOVELAI_TEXT.sub(r"\\\g<0>", text)
    weight = NOVELAI_STEP ** max(min(steps, NOVELAI_MOST), -NOVELAI_MOST)
    return f"({escaped}:{round(weight, 4):g})" if steps and text else escaped


class _Graph:
    """A graph of ComfyUI: the nodes by their ids, each with its class and its inputs."""

    def __init__(self, data: object) -> None:
        is_graph = isinstance(data, dict) and len(data) <= MOST_NODES
        nodes = data if is_graph and isinstance(data, dict) else {}
        self._nodes: dict[str, dict[str, Any]] = {
            name: node["inputs"]
            for name, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def read(self) -> Infotext | None:
        """Return what leads to the sampler; None: there is none."""
        samplers = (one for one in self._nodes.values() if {"positive", "negative", "steps"} <= one.keys())
        sampler = next(samplers, None)
        if sampler is None:
            return None
        models = list(self._follow(sampler, "model"))
        tags = [_write_tag(node) for node in reversed(models) if isinstance(node.get("lora_name"), str)]
        prompt = " ".join([self._find_text(sampler, "positive"), *tags])
        latents = next(
            (one for one in self._follow(sampler, "latent_image", "samples") if "width" in one), {}
        )
        names = (_show(one["ckpt_name"]) for one in models if "ckpt_name" in one)
        sizes = [_show(self._find_value(latents.get(side))) for side in ("width", "height")]
        denoise = self._find_value(sampler.get("denoise"))
        seed = sampler.get("seed", sampler.get("noise_seed"))
        parameters = {
            "Steps": self._find_value(sampler["steps"]),
            "Sampler": _name_sampler(_show(sampler.get("sampler_name"))),
            "Schedule type": _show(sampler.get("scheduler")).capitalize(),
            "CFG scale": self._find_value(sampler.get("cfg")),
            "Seed": self._find_value(seed),
            "Size": "x".join(sizes) if all(sizes) else None,
            "Model": PureWindowsPath(next(names, "")).stem,
            "Denoising strength": None if denoise == 1 else denoise,
        }
        return Infotext(prompt.strip(), self._find_text(sampler, "negative"), _keep_known(parameters))

    def _follow(self, node: Mapping[str, Any], *names: str) -> Iterator[dict[str, Any]]:
        """Yield the nodes that an input comes from, one after another; `names`: the inputs to follow."""
        seen: set[str] = set()
        while True:
            links = (self._link(node.get(name)) for name in names)
            link = next((one for one in links if one is not None), None)
            if link is None or link in seen:
                return
            seen.add(link)
            node = self._nodes[link]
            yield self._nodes[link]

    def _find_text(self, sampler: Mapping[str, Any], name: str) -> str:
        """Return the prompt that leads to an input, through nodes that change what was made of it."""
        for node in self._follow(sampler, name, "conditioning", "conditioning_1", *TEXTS):
            for key in TEXTS:
                if isinstance(text := node.get(key), str):
                    return text.strip()
        return ""

    def _find_value(self, value: object) -> object:
        """Return a value, or that of the node that it comes from."""
        link = self._link(value)
        if link is None:
            return value
        values = (one for one in self._nodes[link].values() if isinstance(one, int | float))
        return next(values, None)

    def _link(self, value: object) -> str | None:
        """Return the id of the node that an input comes from."""
        return value[0] if isinstance(value, list) and value and self._is_node(value[0]) else None

    def _is_node(self, name: object) -> bool:
        return isinstance(name, str) and name in self._nodes


def _write_tag(node: Mapping[str, Any]) -> str:
    unet = node.get("strength_model", 1)
    text = node.get("strength_clip", unet)
    return f"<lora:{PureWindowsPath(node['lora_name']).stem}:{_show(text)}:{_show(unet)}>"


def _name_sampler(name: str) -> str:
    return SAMPLERS.get(name, name)


def _keep_known(parameters: Mapping[str, object]) -> dict[str, str]:
    return {key: shown for key, value in parameters.items() if (shown := _show(value))}


def _show(value: object) -> str:
    """Return a text or a number as text; "" for everything else."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
