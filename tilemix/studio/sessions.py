"""How a person proves the studio's token in a browser: typed once, then a cookie that stands for it.

The cookie is not the token but its HMAC: who reads the cookie cannot use the API elsewhere under the token, and
another token ends every session. It is HttpOnly, so no script reads it, and SameSite=Strict, so no page elsewhere
sends it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilemix.studio.settings import Secret

SESSION_COOKIE = "tilemix_session"
SESSION_SECONDS = 30 * 86_400
PURPOSE = b"tilemix studio session, version 1"


def make_session(token: Secret) -> str:
    """Return the cookie's value, 64 hex digits."""
    return hmac.digest(token.reveal().encode(), PURPOSE, hashlib.sha256).hex()


def is_session(value: str, token: Secret) -> bool:
    """Return whether a cookie's value is that of the token."""
    return hmac.compare_digest(value.encode(), make_session(token).encode())


def is_token(typed: str, token: Secret) -> bool:
    """Return whether a typed text is the token."""
    return hmac.compare_digest(typed.strip().encode(), token.reveal().encode())
