"""How a person logs in: the studio's token is typed once, then a cookie stands for it.

The cookie holds an HMAC of the token, not the token. A stolen cookie does not reveal the token, and changing the
token ends every session. HttpOnly keeps scripts from reading it; SameSite=Strict keeps other sites from sending it.
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
    """Return whether a cookie's value belongs to the token."""
    return hmac.compare_digest(value.encode(), make_session(token).encode())


def is_token(typed: str, token: Secret) -> bool:
    """Return whether what was typed is the token."""
    return hmac.compare_digest(typed.strip().encode(), token.reveal().encode())
