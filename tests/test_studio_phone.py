"""The page at the width of a phone, a tablet and a desk, in Chromium: the new picture is in view."""

import pytest

from tests.cog_stand_in import run_cog_stand_in
from tests.live_studio import CHROMIUM, run_chromium, run_live_studio
from tests.studio_parts import data_uri, picture

PATIENCE = 180_000  # milliseconds
PHONE, TABLET, DESK = (390, 844), (820, 1180), (1280, 800)  # pixels


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not here: apt-get install chromium")
def test_the_new_picture_is_in_view_from_any_scroll_position(tmp_path):
    """On a phone the page was moved so that it lay above the screen, and the customer saw a table."""
    pytest.importorskip("playwright")
    with (
        run_cog_stand_in() as cog,
        run_live_studio(tmp_path, cog.url) as studio,
        run_chromium() as browser,
    ):
        cog.outcome = {"status": "succeeded", "output": data_uri(picture(size=600))}
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        for width, height in (PHONE, TABLET, DESK):
            page.set_viewport_size({"width": width, "height": height})
            page.goto(studio)
            bottom = page.evaluate("document.documentElement.scrollHeight")
            positions = (0, 127, bottom // 2, bottom) if (width, height) == PHONE else (bottom,)
            for position in positions:
                cog.gate.clear()
                cog.begun.clear()
                page.locator("#generate").click()
                page.locator("#result [data-running]").wait_for()
                page.evaluate("position => window.scrollTo(0, position)", position)
                page.wait_for_timeout(200)
                cog.gate.set()
                page.locator("#result [data-picture]").wait_for()
                page.wait_for_timeout(200)
                box = page.locator("#result [data-picture]").bounding_box()
                assert box["y"] >= -1, (width, position)
                assert box["y"] + box["height"] <= height + 1, (width, position)
        context.close()
