"""The page on a phone, in Chromium over a stand-in that draws at once: the new picture is in view."""

import pytest

from tests.cog_stand_in import run_cog_stand_in
from tests.live_studio import CHROMIUM, run_chromium, run_live_studio
from tests.studio_parts import data_uri, picture

PATIENCE = 60_000  # milliseconds


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
        context = browser.new_context(viewport={"width": 390, "height": 844}, locale="en-US")
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(studio)
        bottom = page.evaluate("document.documentElement.scrollHeight")
        for position in (0, 127, bottom // 2, bottom):
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
            assert box["y"] >= -1, position
            assert box["y"] + box["height"] <= 845, position
        context.close()
