"""The contact sheet in Debian's Chromium, opened from the disk."""

import json
import re
from statistics import fmean

import pytest

from tests.catalogue_parts import CRASH
from tests.live_studio import CHROMIUM, run_chromium
from tests.test_catalogue_run import Catalogue

HOSTILE = "50% red, 50% blue, </script><img src=x onerror=alert(1)>"
ROWS = ["100% red", "70% red, 30% black", "70% black, 30% red", "100% blue", HOSTILE, CRASH]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    lines = "".join(json.dumps({"prompt": prompt, "width": 256}) + "\n" for prompt in ROWS)
    catalogue = Catalogue(tmp_path_factory.mktemp("sheet"), lines)
    catalogue.run()
    return catalogue


def test_the_page_names_its_files_and_loads_nothing_from_elsewhere(drawn):
    page = (drawn.out / "index.html").read_text()
    assert '{"files": ["index/0000.js"], "rows": 6, "open": 0}' in page
    assert not re.search(r"(src|href)=|https?:", page)
    assert (drawn.out / "index" / "0000.js").read_text().count("\n") == len(ROWS) + 2
    (drawn.out / "index" / "0001.js").write_text("of a longer list before")
    drawn.run()
    assert [path.name for path in (drawn.out / "index").iterdir()] == ["0000.js"]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium")
def test_the_page_searches_sorts_and_lists_failures(drawn):
    pytest.importorskip("playwright", reason="playwright is not installed")
    complaints = []
    with run_chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        page.goto((drawn.out / "index.html").as_uri())

        def wait_for(prompts):
            shown = (
                "[...document.querySelectorAll('#cards li')].map(card => card.querySelector('p').textContent)"
            )
            page.wait_for_function(
                f"JSON.stringify({shown}) === {json.dumps(json.dumps(prompts, separators=(',', ':')))}"
            )

        wait_for(ROWS[:5])
        assert page.locator("#count").text_content() == "5 of 6 rows"
        page.wait_for_function("document.images[0].naturalWidth === 224")
        assert page.locator("#failures summary").text_content() == "1 failed"
        assert page.locator("#failures li").all_text_contents() == [
            f"{CRASH}: drawing failed: RuntimeError: out of memory"
        ]
        page.select_option("#color", "red")
        wait_for([ROWS[0], ROWS[1], ROWS[2], HOSTILE])
        page.fill("#from", "50")
        page.fill("#to", "70")
        wait_for([ROWS[1], HOSTILE])
        page.select_option("#color", "")
        page.select_option("#sort", "color")
        errors = {row["prompt"]: fmean(row["color_errors"].values()) for row in drawn.results[:5]}
        wait_for(sorted(errors, key=errors.get, reverse=True))
        page.fill("#text", "BLUE")
        wait_for(sorted((ROWS[3], HOSTILE), key=errors.get, reverse=True))
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390
    assert complaints == []
