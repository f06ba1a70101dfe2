"""Every error that tilemix raises on purpose.

The tree, so that a caller can catch exactly what it can handle:

* TilemixError
    * InputError               what the caller sent cannot be used
        * PromptError          the text
            * MixError         the color mix in the text
        * RequestError         a number or a choice: seed, size, steps, ...
    * TemplateError            a prompt template file cannot be used
    * WeightsError             the packaged model cannot be used
        * ManifestError        its manifest is wrong
        * MissingFilesError    files it names are not there
        * ModelFileError       a file is not what it should be
            * AdapterError     a LoRA or an embedding that cannot be loaded completely
        * ModelLookupError     a model site cannot be asked, or its answer cannot be used
    * TrainingError            a training cannot begin, or cannot go on
    * TrainingStoppedError     its time was over; the checkpoint holds all of it
    * RenderError              the model ran and gave no picture
    * ImageFileError           a picture file cannot be read or written
    * StudioError              the studio cannot do what it was asked
        * SettingsError        its environment, or the database it was given, cannot be used
        * RefusalError         a request to the studio is refused
            * DeliveryError    a webhook delivery is refused
            * StoreDownError   the database or the disk cannot be used now; try again
        * BackendError         the back end did not take a prediction
            * BackendBusyError       it has no free slot now; wait
            * BackendDownError       it cannot be reached or is broken; nothing has begun
            * BackendRefusedError    it will never take this one
            * BackendUncertainError  it may or may not have begun
        * OutputError          a prediction's picture cannot be taken

Every error is data: a `code` that stays the same when its wording changes, the `field` of the request that it is
about, and `values`. Its English line is composed from `data/messages.json`: one line that names the thing, the value
found and the rule. It never holds a secret or a whole prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any
from unicodedata import category

import msgspec

MESSAGES_FILE = Path(__file__).parent / "data" / "messages.json"

LIST_SEPARATOR = ", "

UNDERSTOOD = "understood"  # the value of a refused mix that holds the shares which were read before the fault

Value = str | int | float


@cache
def load_messages() -> Mapping[str, str]:
    """Return the English line of every code, as a format string with the values' names."""
    return MappingProxyType(msgspec.json.decode(MESSAGES_FILE.read_bytes(), type=dict[str, str]))


def escape(text: str) -> str:
    r"""Return a text with every character that is not printable as Python would escape it: `\n`, `\udcff`.

    Spaces of any width stay: German and French write one before a percent sign.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or category(one) == "Zs" else one.encode("unicode_escape").decode()
        for one in text
    )


class Composer(Formatter):
    """`str.format` with two more formats, for a value that lists names: `{words:or}` is "'red', 'rosa' or 'rot'"."""

    def format_field(self, value: object, format_spec: str) -> str:
        """Format one value; what is not printable in a text is escaped, so that the line stays one."""
        if isinstance(value, str) and not format_spec:
            return escape(value)
        if format_spec not in {"or", "and"}:
            return format(value, format_spec)
        *others, last = (repr(name) for name in str(value).split(LIST_SEPARATOR))
        return f"{LIST_SEPARATOR.join(others)} {format_spec} {last}" if others else last


@dataclass(frozen=True, slots=True)
class Message:
    """Something to tell a person; `str(message)` is its English line."""

    code: str  # kebab-case, a key of `data/messages.json`
    values: Mapping[str, Value]  # what fills the line; names in one value are separated by ", "
    field: str | None = None  # the input that it is about; the line may name it, as `{field}`

    def __str__(self) -> str:
        line = Composer().vformat(load_messages()[self.code], (), {"field": self.field, **self.values})
        understood = self.values.get(UNDERSTOOD)
        return line if understood is None else f"{line}; {Message('mix-understood', {'mix': understood})}"

    def describe(self) -> dict[str, Any]:
        """Return the message as JSON values: code, field, message (the English line) and values."""
        return {
            "code": self.code,
            "field": self.field,
            "message": str(self),
            "values": dict(self.values),
        }

    def as_reason(self) -> dict[str, str]:
        """Return the message as values of another: its line, for `{reason}`, and what the page translates it from."""
        data = {"code": self.code, "field": self.field, "values": dict(self.values)}
        return {"reason": str(self), "reason_data": json.dumps(data)}

    def to_metrics(self) -> dict[str, str]:
        """Return the message as metrics of a prediction; `read_metrics` reads them."""
        named = {} if self.field is None else {"error_field": self.field}
        return {"error_code": self.code, "error_values": json.dumps(dict(self.values)), **named}


def read_metrics(metrics: Mapping[str, Any]) -> Message | None:
    """Return the message in a prediction's metrics; None if there is none, or none of this version's."""
    try:
        values = msgspec.json.decode(metrics["error_values"], type=dict[str, Value | bool])
        message = Message(
            metrics["error_code"], values, msgspec.convert(metrics.get("error_field"), str | None)
        )
        str(message)  # another version's code or values cannot be said
    except (KeyError, TypeError, ValueError):  # msgspec's errors are ValueErrors
        return None
    return message


class TilemixError(Exception):
    """Something tilemix refuses or failed to do.

    Args:
        code: what happened, a key of `data/messages.json`.
        field: the input that it is about, by its name in `predict()`; None where there is none.
        values: what the message names, by placeholder.
    """

    def __init__(self, code: str, *, field: str | None = None, **values: Value) -> None:
        super().__init__(code)
        self.message = Message(code, values, field)

    def __str__(self) -> str:
        return str(self.message)

    @property
    def code(self) -> str:
        """What happened, in kebab-case; stable."""
        return self.message.code

    @property
    def field(self) -> str | None:
        """The input that it is about, by its name in `predict()`."""
        return self.message.field

    @property
    def values(self) -> Mapping[str, Value]:
        """What the message names, by placeholder."""
        return self.message.values


class InputError(TilemixError):
    """What the caller sent cannot be used."""


class PromptError(InputError):
    """The prompt, or the negative prompt, cannot be used."""


class MixError(PromptError):
    """A color mix cannot be read."""

    def __init__(self, code: str, *, field: str | None = "prompt", **values: Value) -> None:
        super().__init__(code, field=field, **values)

    @property
    def position(self) -> int | None:
        """The 1-based character in the prompt that is to blame, if one is."""
        position = self.values.get("position")
        return position if isinstance(position, int) else None


class RequestError(InputError):
    """A number or a choice of the request cannot be used."""


class TemplateError(TilemixError):
    """A prompt template file cannot be used."""


class WeightsError(TilemixError):
    """The packaged model cannot be used."""


class ManifestError(WeightsError):
    """A model manifest is wrong."""


class MissingFilesError(WeightsError):
    """Files that the manifest names are not there."""


class ModelFileError(WeightsError):
    """A model file is not what it should be: wrong size, wrong hash, not safetensors."""


class AdapterError(ModelFileError):
    """A LoRA or an embedding cannot be loaded completely, so it is not loaded at all."""


class ModelLookupError(WeightsError):
    """A model site cannot be asked about a file, or its answer cannot be used."""


class TrainingError(TilemixError):
    """A training cannot begin, or cannot go on: its configuration, its pictures, its disk."""


class TrainingStoppedError(TilemixError):
    """A training's time was over before its last step; it goes on from its checkpoint."""


class RenderError(TilemixError):
    """The model ran and gave no usable picture."""


class ImageFileError(TilemixError):
    """A picture file cannot be read or written."""


class StudioError(TilemixError):
    """The studio cannot do what it was asked."""


class SettingsError(StudioError):
    """The studio's environment, or the database that it names, cannot be used."""


class RefusalError(StudioError):
    """A request to the studio is refused; `status` is the HTTP status of the answer."""

    def __init__(self, code: str, *, status: int, field: str | None = None, **values: Value) -> None:
        super().__init__(code, field=field, **values)
        self.status = status


class DeliveryError(RefusalError):
    """A webhook delivery is refused."""


class StoreDownError(RefusalError):
    """The database, or the disk that the pictures are on, cannot be used now; it will be again."""

    def __init__(self, code: str, **values: Value) -> None:
        super().__init__(code, status=503, field=None, **values)


class BackendError(StudioError):
    """The back end did not take a prediction, or did not answer about one."""


class BackendBusyError(BackendError):
    """The back end has no free slot now; it will have one."""


class BackendDownError(BackendError):
    """The back end cannot be reached, or is broken; nothing has begun."""


class BackendRefusedError(BackendError):
    """The back end will never take this prediction, however often it is asked."""


class BackendUncertainError(BackendError):
    """The back end was lost while it was asked: it may or may not have begun."""


class OutputError(StudioError):
    """A prediction's picture cannot be taken; `is_final`: trying again is useless."""

    def __init__(self, code: str, *, is_final: bool, field: str | None = None, **values: Value) -> None:
        super().__init__(code, field=field, **values)
        self.is_final = is_final
