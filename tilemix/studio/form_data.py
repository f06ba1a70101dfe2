"""Opens the form in a request, with bounds, and refuses one that cannot be read."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tilemix.errors import RefusalError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.datastructures import FormData
    from starlette.requests import Request


@contextlib.asynccontextmanager
async def open_form(
    request: Request, *, fields: int, field_bytes: int, files: int = 0
) -> AsyncIterator[FormData]:
    """Give the fields of a form, at most so many and of so many bytes each.

    Raises:
        RefusalError: its charset is not one of texts, or not known.
        HTTPException: it is malformed or exceeds a bound; by Starlette, which also closes uploads at the end.
    """
    opened = request.form(max_files=files, max_fields=fields, max_part_size=field_bytes)
    try:
        form = await opened
    except (LookupError, ValueError) as error:  # of the charset that the request names
        raise RefusalError("input-bad-charset", status=415) from error
    try:
        yield form
    finally:
        await form.close()
