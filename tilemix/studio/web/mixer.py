"""The form page: a mix as sliders and as text, and the prompt that results."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tilemix.colors.languages import load_languages
from tilemix.drafts.draft import draft_mix, encode_png
from tilemix.errors import ImageFileError, InputError, MixError, PromptError, RequestError
from tilemix.inputs import IntegerInput, NumberInput, load_inputs
from tilemix.pictures.reading import decode_picture, origin_of
from tilemix.pictures.repeating import repeat_origin
from tilemix.prompts.rewrite import NO_MIX
from tilemix.request import GenerationRequest
from tilemix.studio.form_data import open_form
from tilemix.studio.guard import PICTURE_PATH
from tilemix.studio.web.messages import explain
from tilemix.studio.web.mix_form import (
    MAX_ROWS,
    PageForm,
    form_of_inputs,
    mark_position,
    mark_reading,
    read_page_form,
    split_text,
    write_table,
)
from tilemix.studio.web.palette import find_swatch, load_swatches, send_presets, write_mix
from tilemix.studio.web.views import MORE_PICTURES, find_result, stack_bar, tell_state
from tilemix.weights.prompting import make_here

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from tilemix.pictures.repeating import Repeat
    from tilemix.studio.service import Studio, TaskModel
    from tilemix.studio.web.rendering import PageRenderer
    from tilemix.studio.web.views import ResultView
    from tilemix.studio.web.words import Words

MAX_FIELDS = 80
MAX_FIELD_BYTES = 16 * 2**10
MAX_NAME = 80  # characters of a picture's name in a message
SEED = re.compile("[0-9]{1,10}")
DRAFT_INPUTS = ("seed", "task", "granule_size", "width", "height")  # that decide it, beside the prompt
FIRST_PRESET = 0  # shown in an empty form


class MixerPage:
    """Shows and receives the form."""

    def __init__(self, studio: Studio, renderer: PageRenderer) -> None:
        self._studio = studio
        self._renderer = renderer
        self._drafts = asyncio.Semaphore(1)  # each takes half a second of a core

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/", self.mixer, methods=["GET"], include_in_schema=False),
            Route("/", self.generate, methods=["POST"], include_in_schema=False),
            Route(PICTURE_PATH, self.take_picture, methods=["POST"], include_in_schema=False),
            Route("/preview", self.preview, methods=["GET"], include_in_schema=False),
            Route("/draft", self.draft, methods=["GET"], include_in_schema=False),
        ]

    async def mixer(self, request: Request) -> Response:
        """Show the form, empty or filled from a result (`from`, `result`) or from the query."""
        query, words = request.query_params, self._renderer.words(request)
        view = None
        if (identity := query.get("result") or query.get("from")) is not None:
            view = await find_result(self._studio.gallery, identity, words, self._studio.palette)
        if view is not None:
            form = form_of_inputs(view.inputs)
        else:
            form = PageForm({name: query[name] for name in load_inputs() if name in query})
        if not form.values.get("prompt"):
            form.values["prompt"] = self._write_first_preset(words)
        is_given = "from" in query or "prompt" in query
        shown = view if view is not None and "result" in query else None
        state = await tell_state(self._studio, shown) if shown is not None else None
        return self._form(request, form, is_given=is_given, view=shown, state=state)

    async def generate(self, request: Request) -> Response:
        """Receive the form from a browser without JavaScript; redirect to the result.

        With `more`, several pictures are asked for; without a seed each has its own.
        """
        words = self._renderer.words(request)
        async with open_form(request, fields=MAX_FIELDS, field_bytes=MAX_FIELD_BYTES) as data:
            palette = self._find_model(str(data.get("task", ""))).palette
            form, wanted = read_page_form(data, words.code, palette)
            count = MORE_PICTURES if data.get("more") else 1
        if wanted is not None:
            try:
                asked = [await run_in_threadpool(self._studio.ask_for, wanted) for _ in range(count)]
            except InputError as error:
                form.blame(error)
            else:
                return RedirectResponse(f"/results/{asked[0]}", 303)
        return self._form(request, form, is_given=True, status=422)

    async def take_picture(self, request: Request) -> Response:
        """Show the form filled with what a picture says of how it was made; ours, or another program's."""
        words = self._renderer.words(request)
        async with open_form(request, fields=1, field_bytes=MAX_FIELD_BYTES, files=1) as data:
            picture = data.get("picture")
            content = await picture.read() if isinstance(picture, UploadFile) else b""
            name = (picture.filename if isinstance(picture, UploadFile) else None) or "-"
        try:
            repeat = await run_in_threadpool(self._read_picture, content, name[:MAX_NAME])
        except ImageFileError as error:
            form = PageForm({"prompt": self._write_first_preset(words)})
            form.blame(error)
            return self._form(request, form, is_given=False, status=422)
        notes = [explain(note, words) for note in repeat.notes]
        return self._form(request, form_of_inputs(repeat.inputs), is_given=True, picture_notes=notes)

    def _write_first_preset(self, words: Words) -> str:
        return write_mix(send_presets(self._studio.palette)[FIRST_PRESET].mix, words.code)

    def _read_picture(self, content: bytes, name: str) -> Repeat:
        origin = origin_of(decode_picture(content, source=name), source=name)
        return repeat_origin(origin, make_here(self._studio.settings.model, self._studio.manifest))

    async def preview(self, request: Request) -> Response:
        """Return how a text is read for the model of a task, or what is wrong with it. Always 200."""
        values, words = dict(request.query_params), self._renderer.words(request)

        def read() -> dict[str, Any]:
            model = self._find_model(values.get("task", ""))
            return self._preview(values, words) | self._describe_model(model, words)

        return JSONResponse(await run_in_threadpool(read))

    async def draft(self, request: Request) -> Response:
        """Return the draft that a mix will be drawn from, as a PNG in the palette's colors.

        404 where there is no mix, or no swatch of a color.
        """
        try:
            async with self._drafts:
                data = await run_in_threadpool(self._draft, dict(request.query_params))
        except (PromptError, RequestError):
            data = None
        return Response(status_code=404) if data is None else Response(data, media_type="image/png")

    def _draft(self, query: dict[str, str]) -> bytes | None:
        given: dict[str, Any] = {
            name: load_inputs()[name].read(query[name]) for name in DRAFT_INPUTS if query.get(name)
        }
        asked = GenerationRequest(prompt=query.get("prompt", ""), **given)
        mix = self._studio.rewrite(asked.prompt, seed=asked.seed, task=asked.task).sent
        if mix is None:
            return None
        model = self._studio.find_model(asked.task)
        draft = draft_mix(
            mix,
            model.palette,
            asked.width or model.manifest.defaults.width,
            asked.height or model.manifest.defaults.height,
            seed=asked.seed or 0,
            granule_size=asked.granule_size,
        )
        return None if draft is None else encode_png(draft)

    def _form(
        self,
        request: Request,
        form: PageForm,
        *,
        is_given: bool,
        view: ResultView | None = None,
        state: dict[str, Any] | None = None,
        picture_notes: list[str] | None = None,
        status: int = 200,
    ) -> Response:
        words, model = self._renderer.words(request), self._find_model(form.values.get("task", ""))
        palette, described = model.palette, self._describe_model(model, words)
        preview = self._preview(form.values, words)
        if form.error is not None:
            error, error_field = explain(form.error, words), form.error.field
        else:
            error, error_field = preview["error"], preview["error_field"]
        mix = {share["color"]: share["percent"] for share in preview["mix"]}
        rows = [load_inputs()[name] for name in ("prompt", *DRAFT_INPUTS) if name != error_field]
        draft_query = {row.name: form.values.get(row.name) or getattr(row, "default", "") for row in rows}
        script = {
            **described,
            "presets": [preset.mix for preset in send_presets(palette)],
            "words": words.for_script(),
            "is_given": is_given,
            "preview": preview,
            "numbers": [
                name for name, row in load_inputs().items() if isinstance(row, IntegerInput | NumberInput)
            ],
            "draft_inputs": DRAFT_INPUTS,
            "max_colors": MAX_ROWS,
        }
        return self._renderer.render(
            request,
            "mixer.html",
            status=status,
            form=form,
            error=error,
            error_field=error_field,
            mix=mix,
            table_was=write_table(mix),
            preview=preview,
            mix_bar=stack_bar(mix, words, palette),
            view=view,
            state=state,
            picture_notes=picture_notes,
            swatches=load_swatches(words.code, palette),
            presets=[
                {
                    "name": preset.names[words.code],
                    "text": write_mix(preset.mix, words.code),
                    "bar": stack_bar(preset.mix, words, palette),
                }
                for preset in send_presets(palette)
            ],
            inputs=load_inputs(),
            tasks=self._studio.list_tasks(),
            placeholders=described["placeholders"],
            language_count=len(load_languages()),
            draft_query={name: value for name, value in draft_query.items() if value},
            row_count=min(max(len(mix) + 2, 5), MAX_ROWS),
            script_data=json.dumps(script, ensure_ascii=False),
        )

    def _find_model(self, task: str) -> TaskModel:
        """Return the model that draws a task; the served one, if the task cannot be done."""
        try:
            return self._studio.find_model(task or None)
        except RequestError:
            return self._studio.find_model(None)

    def _describe_model(self, model: TaskModel, words: Words) -> dict[str, Any]:
        """Return a model's colors and its defaults, as the page shows them."""
        return {
            "colors": msgspec.to_builtins(list(load_swatches(words.code, model.palette).values())),
            "placeholders": {
                name: words.number(value, 2) if isinstance(value, float) else "" if value is None else value
                for name, value in model.list_defaults().items()
            },
        }

    def _preview(self, values: Mapping[str, str], words: Words) -> dict[str, Any]:
        text, seed, task = (values.get(name, "") for name in ("prompt", "seed", "task"))
        empty: dict[str, Any] = {
            "mix": [],
            "head": "",
            "tail": "",
            "sent_prompt": "",
            "notes": [],
            "reading": [],
        }
        try:
            # A seed that is not a number yet makes no choice; what is sent is checked.
            palette = self._studio.find_model(task or None).palette
            number = int(seed) if SEED.fullmatch(seed) else None
            prompt = self._studio.rewrite(text, seed=number, task=task or None)
            mix, head, tail = split_text(text, palette) if prompt.mix is not None else ({}, "", f", {text}")
        except (PromptError, RequestError) as error:
            position = error.position if isinstance(error, MixError) else None
            before, marked = mark_position(text, position)
            told = {"error": explain(error.message, words), "error_field": error.field}
            return {**empty, **told, "before": before, "marked": marked}
        shares = [
            {
                "color": color,
                "percent": share,
                "word": find_swatch(color, words.code, palette).word,
            }
            for color, share in mix.items()
        ]
        return {
            "mix": shares,
            "head": head,
            "tail": tail,
            "sent_prompt": prompt.positive,
            "notes": [
                explain(note, words) for note in (prompt.notes if prompt.mix is not None else [NO_MIX])
            ],
            "reading": mark_reading(text, prompt.spans),
            "error": None,
            "error_field": None,
            "before": "",
            "marked": "",
        }
