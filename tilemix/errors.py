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
    * StudioError              the studio cannot do what it was asked
        * SettingsError        its environment, or the database it was given, cannot be used
        * DeliveryError        a webhook delivery is refused
        * BackendError         the back end did not take a prediction
            * BackendBusyError       it has no free slot now; wait
            * BackendDownError       it cannot be reached, or is broken; surely nothing was begun
            * BackendRefusedError    it will never take this one
            * BackendUncertainError  it may or may not have begun
        * OutputError          a prediction's picture cannot be taken

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


class StudioError(TilemixError):
    """The studio cannot do what it was asked."""


class SettingsError(StudioError):
    """The studio's environment, or the database that it names, cannot be used."""


class DeliveryError(StudioError):
    """A webhook delivery is refused; `status` is the HTTP status that says so to its sender."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class BackendError(StudioError):
    """The back end did not take a prediction, or did not answer about one."""


class BackendBusyError(BackendError):
    """The back end has no free slot now; it will have one."""


class BackendDownError(BackendError):
    """The back end cannot be reached, or is broken; what was asked of it has surely not begun."""


class BackendRefusedError(BackendError):
    """The back end will never take this prediction, however often it is asked."""


class BackendUncertainError(BackendError):
    """The back end was lost while it was asked: it may or may not have begun."""


class OutputError(StudioError):
    """A prediction's picture cannot be taken; `is_final` says that trying again is of no use."""

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final
