"""What the page's sliders shall do, written once more in Python: the browser is held against it.

Shares are whole tenths of a percent that total 1000. Exact fractions here, floating point there.
"""

from dataclasses import dataclass
from fractions import Fraction

WHOLE = 1000
PERCENT = 10


def apportion(weights: list[int], total: int, unit: int) -> list[int]:
    """Split `total` in multiples of `unit` by largest remainder; of equal remainders the first wins."""
    quota = Fraction(total, unit)
    whole = sum(weights)
    exact = [quota * (Fraction(weight, whole) if whole else Fraction(1, len(weights))) for weight in weights]
    parts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: int(quota) - sum(parts)]:
        parts[index] += 1
    return [part * unit for part in parts]


@dataclass
class Share:
    color: str
    tenths: int
    wish: int
    is_locked: bool = False


class Sliders:
    def __init__(self, mix: dict[str, int]) -> None:
        self.shares = [Share(color, percent * PERCENT, percent * PERCENT) for color, percent in mix.items()]
        self.rest: str | None = None

    def get(self, color: str) -> Share:
        return next(share for share in self.shares if share.color == color)

    def values(self) -> dict[str, int]:
        return {share.color: share.tenths for share in self.shares}

    def move(self, color: str, tenths: int, *, is_settled: bool = True) -> None:
        moved = self.get(color)
        most = WHOLE - sum(share.tenths for share in self.shares if share.is_locked and share is not moved)
        free = [share for share in self.shares if not share.is_locked and share is not moved]
        target = min(max(tenths, 0), most) if free else most
        if target == moved.tenths:
            return
        moved.tenths = target
        left = most - moved.tenths
        keeper = next((share for share in free if share.color == self.rest), None)
        kept = sum(share.tenths for share in free if share is not keeper)
        if keeper is not None and left >= kept:
            keeper.tenths = left - kept
        else:
            if keeper is not None:
                keeper.tenths = 0
            sharing = free if len(free) == 1 else [share for share in free if share is not keeper]
            if sharing:
                unit = 1 if left % PERCENT else PERCENT
                parts = apportion([share.wish for share in sharing], left, unit)
                for share, part in zip(sharing, parts, strict=True):
                    share.tenths = part
        if is_settled:
            self.settle()

    def settle(self) -> None:
        for share in self.shares:
            share.wish = share.tenths or share.wish

    def toggle_lock(self, color: str) -> None:
        share = self.get(color)
        share.is_locked = not share.is_locked
        if share.is_locked and self.rest == color:
            self.rest = None

    def toggle_rest(self, color: str) -> None:
        self.rest = None if self.rest == color else color
        self.get(color).is_locked = False

    def add(self, color: str) -> None:
        self.shares.append(Share(color, 0, 0))
        self.move(color, 10 * PERCENT)

    def can_remove(self, color: str) -> bool:
        others = [share for share in self.shares if share.color != color]
        is_free = self.get(color).tenths == 0 or any(not share.is_locked for share in others)
        return bool(others) and is_free

    def remove(self, color: str) -> None:
        if self.get(color).tenths:
            self.move(color, 0, is_settled=False)
        self.shares = [share for share in self.shares if share.color != color]
        if self.rest == color:
            self.rest = None
        self.settle()
