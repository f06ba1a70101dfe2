"""What keeps parts of the studio from working now, for `/health`."""

from __future__ import annotations

from tilemix.errors import Message, TilemixError


class Faults:
    """The fault of each part that has one; a part notes its own and clears it when it works again. Thread-safe."""

    def __init__(self) -> None:
        self._found: dict[str, Message] = {}

    def note(self, part: str, error: Exception) -> None:
        """Remember why a part does not work."""
        if isinstance(error, TilemixError):
            self._found[part] = error.message
        else:
            self._found[part] = Message("studio-part-failed", {"reason": type(error).__name__})

    def clear(self, part: str) -> None:
        """Forget the fault of a part."""
        self._found.pop(part, None)

    def all(self) -> dict[str, Message]:
        """Return every part that has a fault."""
        return dict(self._found)
