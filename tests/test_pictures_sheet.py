"""Contact sheets: every picture at its place, labels within theirs."""

import numpy as np

from tilemix.pictures.sheet import FAINT, LINE, MARGIN, PAPER, Cell, draw_sheet


def flat(color: tuple[int, int, int], height: int = 40, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def test_pictures_stand_in_rows_and_columns_and_missing_ones_leave_an_empty_place() -> None:
    grid = [[Cell(flat((250, 0, 0))), Cell(flat((0, 250, 0)))], [Cell(None), Cell(flat((0, 0, 250)))]]
    sheet = np.asarray(draw_sheet(grid, side=40))
    assert sheet.shape == (MARGIN + 2 * (40 + MARGIN), MARGIN + 2 * (40 + MARGIN), 3)
    first, second = MARGIN + 20, MARGIN + 40 + MARGIN + 20
    assert tuple(sheet[first, first]) == (250, 0, 0)
    assert tuple(sheet[first, second]) == (0, 250, 0)
    assert tuple(sheet[second, first]) == FAINT
    assert tuple(sheet[second, second]) == (0, 0, 250)


def test_a_large_picture_is_reduced_whole_and_a_small_one_keeps_its_size() -> None:
    large = np.concatenate([flat((250, 0, 0), 200, 100), flat((0, 0, 250), 200, 100)], axis=1)
    sheet = np.asarray(draw_sheet([[Cell(large), Cell(flat((0, 250, 0), 10, 10))]], side=40))
    assert tuple(sheet[MARGIN + 20, MARGIN + 5]) == (250, 0, 0)
    assert tuple(sheet[MARGIN + 20, MARGIN + 35]) == (0, 0, 250)
    right = MARGIN + 40 + MARGIN
    assert tuple(sheet[MARGIN + 9, right + 9]) == (0, 250, 0)
    assert tuple(sheet[MARGIN + 11, right + 11]) == PAPER


def test_labels_have_places_of_their_own_and_long_ones_are_cut_off() -> None:
    cell = Cell(flat((250, 0, 0)), "one\n" + "two " * 80)
    bare = np.asarray(draw_sheet([[Cell(flat((250, 0, 0)))]], side=40))
    sheet = np.asarray(
        draw_sheet([[cell]], columns=["strength 0.5"], rows=["50% red"], title="a title " * 50, side=40)
    )
    assert sheet.shape[0] == bare.shape[0] + 4 * LINE  # the title, the columns, two lines of the caption
    left = sheet.shape[1] - 40 - MARGIN
    top = MARGIN + 2 * LINE
    assert (sheet[top : top + 40, left : left + 40] == (250, 0, 0)).all()
    assert (sheet[top : top + 40, MARGIN : left - MARGIN] < 100).any()  # the row's label
    for rows in (slice(0, top), slice(top + 40, None)):
        assert (sheet[rows] < 100).any()
    assert (sheet[:, -MARGIN:] == PAPER).all()  # nothing runs over the edge


def test_an_empty_grid_is_a_blank_sheet() -> None:
    assert (np.asarray(draw_sheet([])) == PAPER).all()
