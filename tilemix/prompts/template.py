"""Prompt templates: how a user's words become the prompt that the model was trained on.

A template is a JSON file, named after itself::

    {
      "name": "rubber_tile",
      "text": "ohwx_rubber_tile <s0><s1>, $prompt, photorealistic rubber tile",
      "trigger_words": ["ohwx_rubber_tile"],
      "placeholder_tokens": ["<s0>", "<s1>"],
      "negative_prompt": "blurry, watermark"
    }

Only `text` is a template. What the user typed is inserted as it is, so `$x`,
`{x}` and `%s` in it have no meaning.
"""

from __future__ import annotations

import re
from string import Template
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import PromptError, TemplateError
from tilemix.prompts.checks import PLACEHOLDER_TOKEN, check_text
from tilemix.system.json_file import read_json
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 64 * 1024


class PromptTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt template that passed every check of `load_template`."""

    name: str
    text: str  # contains `$prompt` once, where the user's words go
    trigger_words: list[str]  # words the adapter was trained with; a prompt with one of them is complete
    placeholder_tokens: list[str]  # "<s0>", "<s1>": textual inversion tokens; as above
    negative_prompt: str  # used if the request has none

    def fill(self, prompt: str) -> str:
        """Return the template's text with `prompt` in its place."""
        return Template(self.text).substitute(prompt=prompt)

    def find_marker(self, prompt: str) -> str | None:
        """Return the first trigger word or placeholder token in `prompt`; None if there is none.

        A trigger word matches as a whole word, in any case, because CLIP's tokenizer ignores case.
        """
        for token in self.placeholder_tokens:
            if token in prompt:
                return token
        for word in self.trigger_words:
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE):
                return word
        return None


def list_templates(root: Path = ROOT) -> list[str]:
    """Return the names of the prompt templates, sorted."""
    return sorted(path.stem for path in (root / "prompt_templates").glob("*.json"))


def find_template(name: str, root: Path = ROOT) -> PromptTemplate:
    """Read and check `prompt_templates/NAME.json`.

    Raises:
        TemplateError: there is no such template, or it is not correct.
    """
    known = list_templates(root)
    if name not in known:
        raise TemplateError("template-unknown", name=name[:80], known=", ".join(known) or "none")
    return load_template(root / "prompt_templates" / f"{name}.json")


def load_template(path: Path) -> PromptTemplate:
    """Read and check the prompt template at `path`.

    Raises:
        TemplateError: the file is missing or not a correct template.
    """
    template = read_json(path, PromptTemplate, most=MAX_FILE_BYTES, refuse=TemplateError)
    _check(template, path)
    return template


def _check(template: PromptTemplate, path: Path) -> None:
    file = str(path)
    if template.name != path.stem:
        raise TemplateError("template-bad-name", file=file, found=template.name, expected=path.stem)
    names = [match["named"] for match in Template.pattern.finditer(template.text)]
    if names != ["prompt"]:
        raise TemplateError("template-bad-text", file=file, found=template.text[:80])
    for word in template.trigger_words:
        if not word.strip() or word not in template.text:
            raise TemplateError("template-bad-trigger-word", file=file, found=word)
    for token in template.placeholder_tokens:
        if not PLACEHOLDER_TOKEN.fullmatch(token) or token not in template.text:
            raise TemplateError("template-bad-token", file=file, found=token)
    try:
        check_text(template.text, field="text")
        check_text(template.negative_prompt, field="negative_prompt")
    except PromptError as error:
        raise TemplateError("template-broken", file=file, **error.message.as_reason()) from error
