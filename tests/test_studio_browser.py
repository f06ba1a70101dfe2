"""The page in Debian's Chromium, over the real Cog server with the miniature.

Whatever a test does, the browser's console stays without an error.
"""

import json
import random
import re
import time

import httpx
import pytest

from tests.cog_stand_in import run_cog_stand_in
from tests.live_studio import CHROMIUM, run_chromium, run_live_studio, run_miniature
from tests.slider_twin import PERCENT, WHOLE, Sliders
from tests.test_pictures_record import PIXELS, make_record
from tilemix.pictures.files import encode_image
from tilemix.studio.settings import Secret

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium"),
]

PATIENCE = 180_000  # milliseconds, on a machine with other work
PHONE = {"width": 390, "height": 844}
SMALL = {"width": "256", "height": "256", "num_inference_steps": "8", "strength": "1"}


@pytest.fixture(scope="module")
def browser():
    with run_chromium() as running:
        yield running


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """The address of a studio whose pictures are drawn by the miniature."""
    folder = tmp_path_factory.mktemp("browser")
    with run_miniature(folder / "cog") as cog, run_live_studio(folder / "studio", cog) as address:
        yield address


@pytest.fixture(scope="module")
def drawn(studio):
    """The ids of two small pictures."""
    sizes = {name: int(value) for name, value in SMALL.items()}
    with httpx.Client(base_url=studio, timeout=PATIENCE / 1000) as client:
        mixes = ("50% red, 50% black", "100% blue")
        ids = [client.post("/api/predictions", json={"prompt": mix, **sizes}).json()["id"] for mix in mixes]
        for identity in ids:
            deadline = time.monotonic() + PATIENCE / 1000
            while client.get(f"/api/predictions/{identity}").json()["url"] is None:
                assert time.monotonic() < deadline, "no picture"
                time.sleep(0.2)
    return ids


@pytest.fixture
def open_page(browser, studio):
    """Open pages that must leave nothing in the console."""
    complaints, contexts = [], []

    def listen(page):
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(studio) or complaints.append(request.url))

    def make(path="/", *, address=studio, **options):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "locale": "en-US"} | options
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        if address == studio:
            listen(page)
        page.goto(address + path)
        return page

    make.complaints = complaints
    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def set_small(page, **more):
    """Settings for a quick picture."""
    page.locator(".more summary").click()
    for name, value in (SMALL | more).items():
        page.fill(f"#{name}", value)
    page.locator(".more summary").click()


def read_sliders(page) -> dict[str, int]:
    """Every color's share as its field shows it, in tenths."""
    shares = page.eval_on_selector_all(
        "#shares > li",
        "rows => rows.map(row => [row.dataset.color, row.querySelector('[data-typed]').value])",
    )
    return {color: round(float(text) * PERCENT) for color, text in shares}


def slide(page, color, percent):
    """Drag a slider: many values on the way, then let go."""
    page.eval_on_selector(
        f"#shares > li[data-color='{color}'] [type=range]",
        """(slider, value) => {
            const start = Number(slider.value);
            for (let part = 1; part <= 4; part++) {
                slider.value = Math.round(start + (value - start) * part / 4);
                slider.dispatchEvent(new Event("input", {bubbles: true}));
            }
            slider.dispatchEvent(new Event("change", {bubbles: true}));
        }""",
        percent,
    )


def test_the_sliders_do_what_their_twin_does(open_page):
    page = open_page()
    chance = random.Random(7)
    twin = Sliders({"red": 50, "black": 30, "pearl": 20})
    assert read_sliders(page) == twin.values()
    for _ in range(70):
        row = chance.choice(twin.shares)
        at = f"#shares > li[data-color='{row.color}']"
        action = chance.choice(["slide", "slide", "slide", "type", "lock", "rest", "add", "remove"])
        if action == "slide" and not row.is_locked:
            percent, start = chance.randrange(101), row.tenths / PERCENT
            slide(page, row.color, percent)
            for part in range(1, 5):
                # JavaScript rounds halves up, and a range takes whole steps.
                value = int((int(start + 0.5) + (percent - int(start + 0.5)) * part / 4) + 0.5)
                twin.move(row.color, value * PERCENT, is_settled=False)
            twin.settle()
        elif action == "type" and not row.is_locked:
            tenths = chance.randrange(-20, 1100)
            page.fill(f"{at} [data-typed]", f"{tenths / PERCENT:g}"[:5])
            page.press(f"{at} [data-typed]", "Enter")
            twin.move(row.color, tenths)
        elif action in {"lock", "rest"}:
            page.click(f"{at} [data-{action}]")
            getattr(twin, f"toggle_{action}")(row.color)
        elif action == "add" and len(twin.shares) < 6:
            page.click("#add")
            choice = page.locator("#chart button").nth(chance.randrange(20))
            choice.click()
            added = page.locator("#shares > li").last.get_attribute("data-color")
            twin.add(added)
        elif action == "remove" and twin.can_remove(row.color):
            page.click(f"{at} [data-remove]")
            twin.remove(row.color)
        found = read_sliders(page)
        assert found == twin.values(), action
        assert sum(found.values()) == WHOLE
        assert page.inner_text("#total") == "100%"


def test_text_and_sliders_stay_in_step(open_page):
    page = open_page()
    slide(page, "red", 60)
    assert page.input_value("#prompt") == "60% red, 24% black, 16% pearl"
    page.fill("#prompt", "wet floor, 70% blau und Rest weiß, side light")
    page.wait_for_selector("#shares > li[data-color=white]")
    assert read_sliders(page) == {"blue": 700, "white": 300}
    assert page.input_value("#prompt") == "wet floor, 70% blau und Rest weiß, side light"
    slide(page, "blue", 55)
    assert page.input_value("#prompt") == "wet floor, 55% blue, 45% white, side light"
    page.click(".sent summary")
    page.get_by_text(
        "ohwx_rubber_tile <s0><s1>, wet floor, 55% blue, 45% white, side light, photo"
    ).wait_for()
    assert page.locator("#reading mark").first.inner_text().strip(" ,") == "55% blue, 45% white"
    page.fill("#prompt", "wet granules in the sun")
    page.get_by_text("Not a mix").wait_for()
    assert read_sliders(page) == {}
    page.fill("#prompt", "50% rad, 50% black")
    page.wait_for_selector("[data-prompt-error]:visible")
    assert "Did you mean “red”?" in page.inner_text("[data-prompt-error]")
    assert page.inner_text("[data-prompt-error] mark") == "rad"
    assert page.locator(".controls .bar rect").count() == 0
    assert page.get_by_text("A draft with exactly these shares").is_hidden()
    page.click("#generate")
    assert page.locator("#result article").count() == 0
    page.click("[data-preset='1']")
    page.wait_for_selector("[data-prompt-error]", state="hidden")
    assert read_sliders(page) == {"black": 900, "gray": 100}
    assert page.locator(".controls .bar rect").count() == 2
    page.get_by_text("A draft with exactly these shares").wait_for()


def test_the_sliders_work_with_the_keyboard_and_say_what_they_are(open_page):
    page = open_page(locale="de-DE")
    slider = page.get_by_role("slider", name="Anteil von rot")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert read_sliders(page)["red"] == 530
    assert slider.get_attribute("aria-valuetext") == "53\N{NO-BREAK SPACE}%"
    page.keyboard.press("Home")
    assert read_sliders(page)["red"] == 0
    page.keyboard.press("End")
    assert read_sliders(page) == {"red": 1000, "black": 0, "pearl": 0}
    assert page.input_value("#prompt") == "100% rot"
    page.get_by_role("button", name="Farbe hinzufügen").press("Enter")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "add"


def test_the_whole_path_from_the_sliders_to_the_comparison(open_page):
    page = open_page()
    set_small(page, num_inference_steps="100")
    slide(page, "red", 70)
    page.fill("#seed", "7")
    page.locator("#prompt").press("Control+Enter")
    page.locator("[data-state]", has_text=re.compile(r"Drawing: step \d+ of 100")).wait_for()
    page.locator("[data-detail]", has_text=re.compile(r"about \d+ s left")).wait_for()
    assert 0 < float(page.get_attribute("[data-progress]", "value")) <= 1
    page.wait_for_selector("[data-picture]")
    form, stage = (page.locator(name).bounding_box() for name in (".mixer", ".stage"))
    assert stage["x"] > form["x"] + form["width"]  # side by side on a desk
    assert stage["y"] < form["y"] + 100
    decoded = "image => image.decode().then(() => image.naturalWidth)"
    assert page.eval_on_selector("[data-picture]", decoded) == 256
    row = page.locator(".shares tbody tr", has_text="Red").inner_text().split()
    assert row[:2] == ["Red", "70%"]
    assert re.fullmatch(r"\d+\.\d%", row[2]), row  # measured by the server
    assert "real color may differ" in page.inner_text("#result .note")

    # A reload keeps the picture and the settings, also those that were changed since.
    slide(page, "red", 40)
    page.reload()
    page.wait_for_selector("[data-picture]")
    assert page.input_value("#prompt").startswith("40% red")
    assert read_sliders(page)["red"] == 400
    assert (page.input_value("#seed"), page.input_value("#width")) == ("7", "256")

    # A second one with a fresh seed.
    first = page.get_attribute("article", "data-result")
    page.get_by_role("button", name="Another one").click()
    page.wait_for_selector(f"article:not([data-result='{first}']) [data-picture]")
    second = page.get_attribute("article", "data-result")
    assert page.text_content("[data-seed]").strip() != "7"

    # The file carries its record.
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"tile-{second}.png"
    with page.expect_download() as download:
        page.get_by_role("link", name="Record").click()
    assert download.value.suggested_filename == f"tile-{second}.json"

    # The gallery finds both, and puts them side by side.
    page.get_by_role("link", name="Gallery").click()
    page.select_option("[name=color]", "black")
    page.wait_for_url("**/gallery?color=black*")
    page.fill("[name=text]", "70% red")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**text=70*")
    assert page.locator(".gallery li").count() == 2
    assert page.get_by_role("button", name="Compare").is_disabled()
    for box in page.locator(".gallery [type=checkbox]").all():
        box.check()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?*")
    shown = page.eval_on_selector_all(
        ".picture img", "images => images.map(image => image.getAttribute('src'))"
    )
    assert sorted(shown) == sorted([f"/files/{first}", f"/files/{second}"])

    # Back to the form: as it was asked for, not as the form was left.
    page.locator("article", has=page.locator(f"[src='/files/{first}']")).get_by_role(
        "link", name="form"
    ).click()
    page.wait_for_selector("#shares > li")
    assert read_sliders(page)["red"] == 700
    assert page.input_value("#seed") == "7"


def test_a_setting_out_of_range_is_shown_where_it_is(open_page):
    """In closed settings it kept the picture from being drawn, and nothing said so but the console."""
    page = open_page()
    set_small(page, width="100")
    page.click("#generate")
    page.wait_for_selector("#width:focus")
    assert page.locator("#result article").count() == 0
    page = open_page(java_script_enabled=False)
    page.locator(".more summary").click()
    page.fill("#width", "100")
    page.locator(".more summary").click()
    page.locator("#generate").click()
    page.wait_for_selector("#width[aria-invalid=true]")
    assert "422" in open_page.complaints.pop()


def test_a_running_picture_is_canceled_on_the_page(open_page):
    page = open_page()
    set_small(page, num_inference_steps="100", width="1024", height="1024")
    page.click("#generate")
    page.wait_for_selector("[data-progress][value]")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Canceled").wait_for()


def test_a_studio_that_is_away_for_a_moment_is_asked_again(open_page, browser, tmp_path):
    """A cancel that was not heard could not be repeated; an answer that was no state was taken for one."""
    with run_cog_stand_in() as cog, run_live_studio(tmp_path / "studio", cog.url) as address:
        cog.gate.clear()
        page = open_page(address=address)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.click("#generate")
        page.wait_for_selector("[data-progress]")
        page.context.set_offline(True)
        cancel = page.get_by_role("button", name="Cancel")
        cancel.click()
        page.wait_for_function("!document.querySelector('[data-cancel] button').disabled")
        page.context.set_offline(False)
        page.route("**/state", lambda route: route.fulfill(status=503, json={"error": "not now"}))
        page.wait_for_timeout(1200)
        page.unroute("**/state")
        assert page.locator("[data-progress]").count() == 1
        cancel.click()
        deadline = time.monotonic() + PATIENCE / 1000
        while not cog.canceled:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cog.gate.set()
        page.get_by_role("heading", name="Canceled").wait_for()
        assert errors == []
        page.context.close()


def test_without_a_script_the_whole_path_works(open_page):
    page = open_page(java_script_enabled=False, locale="ru-RU")
    assert page.locator("#sliders").is_hidden()
    page.locator("[name=percent]").nth(0).fill("20")
    page.locator("[name=percent]").nth(1).fill("")
    page.locator("[name=rest]").nth(1).check()
    page.locator(".more summary").click()
    for name, value in SMALL.items():
        page.fill(f"#{name}", value)
    page.get_by_role("button", name="Нарисовать").click()
    page.wait_for_url("**/results/*")
    page.wait_for_selector("[data-picture]")
    assert "20 % красный, 60 % чёрный, 20 % жемчужный" in page.inner_text("h1").replace("\xa0", " ")
    page.get_by_role("link", name="Вернуться к форме").click()
    assert page.locator("[name=percent]").nth(1).input_value() == "60"
    page.locator("#prompt").fill("50% rad")
    page.get_by_role("button", name="Нарисовать").click()
    page.get_by_role("alert").get_by_text("Возможно, «red»?").wait_for()
    assert "422" in open_page.complaints.pop()  # the browser notes the refusal, and nothing else


def test_no_page_is_wider_than_a_phone(open_page, studio, drawn):
    page = open_page(viewport=PHONE, is_mobile=True, has_touch=True, locale="ru-RU")
    compare = f"/compare?id={drawn[0]}&id={drawn[1]}"
    for path in (
        "/",
        f"/?result={drawn[0]}",
        f"/results/{drawn[0]}",
        "/gallery",
        compare,
        "/models",
        "/login",
    ):
        page.goto(studio + path)
        for summary in page.locator("main summary").all():
            summary.click()
        # What is cut off inside its parent counts as well, but for what scrolls there.
        wide = page.evaluate(
            """width => [...document.querySelectorAll("main *")].filter(element =>
                element.getBoundingClientRect().right > width + 1
                && !element.closest(".presets, .scroll, .hidden, svg")).map(element => element.outerHTML)""",
            PHONE["width"],
        )
        assert wide == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_nothing_runs_into_the_other_picture_on_a_phone(open_page, drawn):
    """The two tables were wider than their halves of the screen, and stood in each other."""
    page = open_page(
        f"/compare?id={drawn[0]}&id={drawn[1]}", viewport={"width": 360, "height": 740}, locale="ru-RU"
    )
    for article in page.locator(".pair article").all():
        box = article.bounding_box()
        table = article.locator("table").bounding_box()
        assert table["x"] + table["width"] <= box["x"] + box["width"] + 1


def test_language_and_appearance_are_kept(open_page):
    page = open_page()
    page.locator("summary", has_text="English").click()
    page.get_by_role("button", name="Deutsch").click()
    page.get_by_role("heading", name="Boden mischen").wait_for()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("summary", has_text="Darstellung").click()
    page.get_by_role("button", name="Dunkel").click()
    page.wait_for_selector("html[data-theme=dark]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.get_by_role("link", name="Galerie").click()
    page.wait_for_selector("html[data-theme=dark][lang=de]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, studio, drawn, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(color_scheme=scheme)
    ids = drawn
    pages = ["/", f"/?result={ids[0]}", "/gallery", f"/compare?id={ids[0]}&id={ids[1]}", "/models", "/login"]
    for path in pages if scheme == "light" else pages[1:4]:
        page.goto(studio + path)
        if path.startswith("/?"):
            for summary in page.locator("main summary").all():
                summary.click()
            page.click("#add")
        found = Axe().run(page).response["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in found
            if each["impact"] in {"serious", "critical"}
        ]
        assert serious == [], path


def test_a_person_logs_in_before_the_page_is_seen(open_page, browser, tmp_path):
    token = "a-token-of-the-studio"  # noqa: S105  a test's own
    with (
        run_cog_stand_in() as cog,
        run_live_studio(tmp_path / "studio", cog.url, token=Secret(token)) as address,
    ):
        page = open_page("/gallery", address=address)
        page.fill("#token", "wrong")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("alert").wait_for()
        page.fill("#token", token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Gallery").wait_for()
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("heading", name="Log in").wait_for()
        page.context.close()


@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_picture_that_is_chosen_or_dropped_fills_the_form(open_page, tmp_path, is_dropped):
    record = make_record(model="miniature", prompt="30% blue, 70% red", seed=77, num_inference_steps=9)
    path = tmp_path / "tile.webp"
    path.write_bytes(encode_image(PIXELS, record, output_format="webp"))
    page = open_page()
    if is_dropped:
        page.evaluate(
            """bytes => {
                const files = new DataTransfer();
                files.items.add(new File([new Uint8Array(bytes)], "tile.webp", { type: "image/webp" }));
                const drop = { dataTransfer: files, bubbles: true, cancelable: true };
                document.body.dispatchEvent(new DragEvent("drop", drop));
            }""",
            list(path.read_bytes()),
        )
    else:
        page.locator(".from-picture summary").click()
        page.set_input_files("#picture", path)
    page.wait_for_url("**/from-picture")
    assert page.input_value("#seed") == "77"
    assert page.input_value("#num_inference_steps") == "9"
    assert page.input_value("#prompt") == "30% blue, 70% red"
    assert read_sliders(page) == {"blue": 300, "red": 700}
    assert "Settings taken from the picture." in page.inner_text(".controls")


def read_store(page) -> dict:
    return json.loads(page.evaluate("localStorage.getItem('tilemix-mixer-1')"))


def test_a_picture_that_is_refused_leaves_the_form_whole(open_page, studio, tmp_path):
    """The chosen file's name was stored as an input; no script may put it back, and no page came up any more."""
    path = tmp_path / "hello.txt"
    path.write_text("hello")
    page = open_page()
    slide(page, "red", 60)
    page.locator(".from-picture summary").click()
    page.set_input_files("#picture", path)
    page.wait_for_url("**/from-picture")
    assert "hello.txt" in page.get_by_role("alert").first.inner_text()
    assert "422" in open_page.complaints.pop()
    for _ in range(2):
        assert read_sliders(page) == {"red": 600, "black": 240, "pearl": 160}
        page.click("#add")
        page.locator("#chart button").first.wait_for()
        page.goto(studio)
    assert "picture" not in read_store(page)["fields"]


RED = {"color": "red", "tenths": 1000, "wish": 1000, "locked": False}
MIX = {"prompt": "100% red", "head": "", "tail": "", "fields": {}}


def test_what_another_program_stored_is_dropped_piece_by_piece(open_page):
    """One broken value in the browser's storage, and the page had no sliders, visit after visit."""
    page = open_page()
    own = read_store(page)
    first = {"red": 500, "black": 300, "pearl": 200}
    fields = {"width": "512", "height": 7, "granule_size": "huge", "picture": "a.png"}
    foreign = [
        ("{", first),
        ("null", first),
        (json.dumps({"prompt": 7, "shares": [RED], "fields": None}), first),
        (json.dumps(MIX | {"fields": []}), {"red": 1000}),
        (json.dumps(MIX | {"shares": [RED, None], "rest": ["red"]}), {"red": 1000}),
        (json.dumps(MIX | {"shares": [RED, RED | {"color": "blue", "tenths": 1}]}), {"red": 1000}),
        (json.dumps(own | {"fields": fields, "isMoreOpen": "yes", "isSeedLocked": None}), first),
    ]
    for text, shares in foreign:
        page.evaluate(
            "text => addEventListener('pagehide', () => localStorage.setItem('tilemix-mixer-1', text))", text
        )
        page.reload()
        page.wait_for_function(
            "count => document.querySelectorAll('#shares > li').length === count", arg=len(shares)
        )
        assert read_sliders(page) == shares, text
    shown = {name: page.input_value(f"#{name}") for name in ("width", "height", "granule_size")}
    assert shown == {"width": "512", "height": "", "granule_size": "medium"}
