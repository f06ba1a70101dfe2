"""Every error that tilemix raises on purpose.

The tree, so that a caller can catch exactly as much as it can handle:

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
    * RenderError              the model ran and gave no picture
    * ImageFileError           a picture file cannot be read or written

Messages are one line: the thing, the value found, the rule. Secrets and whole
prompts never stand in them.
"""

from __future__ import annotations


class TilemixError(Exception):
    """Something tilemix refuses or failed to do; the message is one line for a person."""


class InputError(TilemixError):
    """What the caller sent cannot be used."""


class PromptError(InputError):
    """The prompt, or the negative prompt, cannot be used."""


class MixError(PromptError):
    """A color mix cannot be read. `position` is the 1-based character in the prompt, if one is to blame."""

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class RequestError(InputError):
    """A number or a choice of the request is out of its range."""


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


class RenderError(TilemixError):
    """The model ran and gave no usable picture."""


class ImageFileError(TilemixError):
    """A picture file cannot be read or written."""
