"""How a person logs in: the studio's token is typed once, then a cookie stands for it until the person logs out.

The cookie holds random bytes, and the database an HMAC of them under the token. So neither reveals the token, and a new
token ends every session. HttpOnly keeps scripts from reading it; SameSite=Strict keeps other sites from sending it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from tilemix.errors import RefusalError
from tilemix.studio.limits import RateLimit
from tilemix.studio.store.schema import Login

if TYPE_CHECKING:
    from datetime import datetime

    from tilemix.studio.clock import Clock
    from tilemix.studio.settings import Secret
    from tilemix.studio.store.database import Database

SESSION_COOKIE = "tilemix_session"
SESSION_SECONDS = 30 * 86_400
GUESSES_AT_ONCE = 10
SECONDS_A_GUESS = 10.0


class Sessions:
    """The sessions under one token, and the guesses at it. This process alone changes them, so it knows them all."""

    def __init__(self, database: Database, token: Secret | None, *, clock: Clock) -> None:
        self._database = database
        self._token = token
        self._clock = clock
        self._guesses = RateLimit(clock.monotonic, at_once=GUESSES_AT_ONCE, seconds_each=SECONDS_A_GUESS)
        with database.read() as session:
            self._begun = {login.digest: login.begun_at for login in session.scalars(select(Login))}

    def begin(self) -> str:
        """Begin a session; return its cookie's value, 64 hex digits.

        Raises:
            StoreDownError: the database cannot be used now.
        """
        value, now = secrets.token_hex(32), self._clock.now()
        digest = self._digest(value)
        with self._database.write() as session:
            session.execute(delete(Login).where(Login.begun_at < now - timedelta(seconds=SESSION_SECONDS)))
            session.add(Login(digest=digest, begun_at=now))
        self._begun[digest] = now
        return value

    def end(self, value: str) -> None:
        """End a session; one that there is not is none.

        Raises:
            StoreDownError: it has ended in this process, but the database does not know yet; try again.
        """
        digest = self._digest(value)
        self._begun.pop(digest, None)
        with self._database.write() as session:
            session.execute(delete(Login).where(Login.digest == digest))

    def holds(self, value: str) -> bool:
        """Return whether a cookie's value stands for a session."""
        begun: datetime | None = self._begun.get(self._digest(value)) if value else None
        return begun is not None and (self._clock.now() - begun).total_seconds() < SESSION_SECONDS

    def check_token(self, given: str, address: str) -> bool:
        """Return whether what an address gives is the token, in constant time; a wrong one counts as a guess.

        Raises:
            RefusalError: it has guessed too often; status 429.
        """
        assert self._token is not None, "without a token none is asked for"
        if not self._guesses.has_room(address):
            raise RefusalError("studio-too-many-guesses", status=429)
        is_right = hmac.compare_digest(given.strip().encode(errors="replace"), self._token.reveal().encode())
        if not is_right:
            self._guesses.take(address)
        return is_right

    def _digest(self, value: str) -> str:
        key = self._token.reveal().encode() if self._token is not None else b""
        return hmac.digest(key, value.encode(errors="replace"), hashlib.sha256).hex()
