"""The model libraries, kept from talking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the loaders' progress bars, and their notes about parts that a model does not use."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (transformers.utils.logging, diffusers.utils.logging)
    verbosity = libraries[0].get_verbosity()
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    libraries[0].set_verbosity_error()
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        libraries[0].set_verbosity(verbosity)
        for library in shown:
            library.enable_progress_bar()
