"""Which piece gets which color: the shares exact by area, and the colors well mixed.

Well mixed means that neighbors have the same color about as often as by chance (join counts: the number of borders
between pieces of one color over that expected if colors were dealt at random). Colors are dealt along rows of
pieces, each piece to a color drawn in proportion to what the colors lack so far, so no region has too much of one.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tilemix.drafts.pieces import Floats, Labels

ROUNDS = 60  # of exchanges that bring the areas nearer to the shares
CLOSE = 2e-4  # of the picture: exchanges end here, and the last piece of each color is cut to size
NEAR = 8  # exchanges that are nearly as good are as likely, so that no piece is preferred


def deal_colors(
    areas: NDArray[np.intp],
    middles: Floats,
    shares: Sequence[float],
    pitch: float,
    random: np.random.Generator,
) -> NDArray[np.intp]:
    """Return the number of the color of each piece (n,).

    Args:
        areas: of the pieces, in pixels; 0 of one that does not show.
        middles: of the pieces, (n, 2), pixels.
        shares: of the colors; they sum to 1.
        pitch: between pieces, in pixels.
        random: decides what the shares leave open.
    """
    total = areas.sum()
    wanted = np.array(shares, np.float64) * total
    colors = np.zeros(len(areas), np.intp)
    shown = np.flatnonzero(areas)
    if len(shares) == 1:
        return colors
    # Serpentine rows, two pieces high: what follows one another lies side by side.
    row = (middles[shown, 1] / (2 * pitch)).astype(np.intp)
    across = np.where(row % 2, -middles[shown, 0], middles[shown, 0])
    order = shown[np.lexsort((across, row))]
    chances = random.random(len(order)).tolist()
    lacking = [0.0] * len(shares)
    for piece, area, chance in zip(order.tolist(), areas[order].tolist(), chances, strict=True):
        lacking = [value + share * area for value, share in zip(lacking, shares, strict=True)]
        grown = list(accumulate(max(value, 0.0) for value in lacking))
        color = bisect_right(grown, chance * grown[-1], hi=len(grown) - 1)
        colors[piece] = color
        lacking[color] -= area
    _exchange(areas, colors, wanted, random)
    return colors


def _exchange(
    areas: NDArray[np.intp],
    colors: NDArray[np.intp],
    wanted: NDArray[np.float64],
    random: np.random.Generator,
) -> None:
    """Let colors give pieces to one another, or exchange two, until their areas are what is wanted, or close to it."""
    shown = np.flatnonzero(areas)
    for _ in range(ROUNDS):
        over = np.bincount(colors[shown], areas[shown], len(wanted)) - wanted
        giver, taker = int(over.argmax()), int(over.argmin())
        amount = min(over[giver], -over[taker])
        if max(over[giver], -over[taker]) < CLOSE * areas.sum():
            return
        given = shown[colors[shown] == giver]
        # A piece of area 0 stands for none: then a piece is given and nothing taken.
        taken = np.concatenate([[-1], shown[colors[shown] == taker]])
        sizes = np.concatenate([[0], areas[taken[1:]]])
        by_size = sizes.argsort(kind="stable")
        places = np.searchsorted(sizes[by_size], areas[given] - amount).clip(0, len(sizes) - 1)
        lower = np.maximum(places - 1, 0)
        miss = np.abs(areas[given] - sizes[by_size[places]] - amount)
        lower_miss = np.abs(areas[given] - sizes[by_size[lower]] - amount)
        places, miss = np.where(lower_miss < miss, lower, places), np.minimum(miss, lower_miss)
        best = miss.argsort(kind="stable")[:NEAR]
        best = best[miss[best] <= miss[best[0]] + CLOSE * areas.sum() / 4]
        chosen = int(random.choice(best))
        if miss[chosen] >= amount:
            return
        partner = taken[by_size[places[chosen]]]
        colors[given[chosen]] = taker
        if partner >= 0:
            colors[partner] = giver


def cut_to_size(
    labels: Labels, colors: NDArray[np.intp], shares: Sequence[float], random: np.random.Generator
) -> NDArray[np.intp]:
    """Cut pieces in two where exchanges alone miss the shares, as with few large granules; to the pixel.

    `labels` (h, w) is changed in place; the colors of all pieces, new ones last, are returned.
    """
    flat = labels.reshape(-1)
    goal = np.array(shares, np.float64) * flat.size
    wanted = np.floor(goal).astype(np.intp)
    wanted[np.argsort(wanted - goal, kind="stable")[: flat.size - wanted.sum()]] += 1
    areas = np.bincount(flat, minlength=len(colors))
    over = np.bincount(colors, areas, len(shares)).astype(np.intp) - wanted
    if np.abs(over).max() < CLOSE * flat.size:
        return colors
    while over.any():
        giver, taker = int(over.argmax()), int(over.argmin())
        amount = int(min(over[giver], -over[taker]))
        own = np.flatnonzero((colors == giver) & (areas > 0))
        # One that leaves a piece behind that can be seen, if there is one; else the largest.
        roomy = own[areas[own] >= 2 * amount]
        piece = int(random.choice(roomy)) if len(roomy) else int(own[areas[own].argmax()])
        amount = min(amount, int(areas[piece]))
        places = np.flatnonzero(flat == piece)
        y, x = np.divmod(places, labels.shape[1])
        angle = random.uniform(0, 2 * np.pi)
        # Halves of a piece that the edge of the picture cuts lie far apart; a cut through both is no worse.
        cut = places[np.argsort(x * np.cos(angle) + y * np.sin(angle), kind="stable")[:amount]]
        flat[cut] = len(colors)
        areas[piece] -= amount
        areas = np.append(areas, amount)
        colors = np.append(colors, taker)
        over[giver] -= amount
        over[taker] += amount
    return colors
