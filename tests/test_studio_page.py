"""The page as HTML, without a browser: forms, languages, escaping, safety, and the whole path without a script."""

import hashlib
import io
import json
import re
import sys
import time
from datetime import UTC, datetime
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.datastructures import FormData
from starlette.testclient import TestClient

from tests.cog_stand_in import run_cog_stand_in
from tests.studio_parts import body, data_uri, picture
from tests.test_pictures_record import PIXELS, make_record
from tests.test_studio_api import MIX, NoLimit, run, wait_for
from tilemix.colors.chart import load_colors
from tilemix.colors.palette import load_palette
from tilemix.drafts.draft import draft_mix
from tilemix.pictures.files import encode_image
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.reading import read_mix
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.studio.guard import MAX_PICTURE_BYTES
from tilemix.studio.model_files import ModelFiles, ask_command_line
from tilemix.studio.negotiation import choose_language
from tilemix.studio.sessions import GUESSES_AT_ONCE
from tilemix.studio.settings import Secret
from tilemix.studio.web.messages import explain_data
from tilemix.studio.web.mix_form import read_page_form, split_text
from tilemix.studio.web.palette import load_presets, load_swatches, send_presets, write_mix
from tilemix.studio.web.rendering import PAGES
from tilemix.studio.web.views import ResultView
from tilemix.studio.web.words import LANGUAGES, load_words
from tilemix.system.project import ROOT
from tilemix.weights import load_manifest
from tilemix.weights.prompting import make_context

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TOKEN = "a-token-of-the-studio"  # noqa: S105
NASTY = '<script>alert(1)</script>" onload="x'


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A client for tests that leave nothing behind which another one would see."""
    with run_cog_stand_in() as cog, run(tmp_path_factory.mktemp("page"), cog, rate_limit=NoLimit()) as client:
        client.headers.update(HTML)
        yield client


@pytest.fixture
def client(tmp_path, cog):
    with run(tmp_path, cog, rate_limit=NoLimit()) as running:
        running.headers.update(HTML)
        yield running


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.texts.append(text)

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def ask(client, prompt=MIX, **more):
    """Generate through the form; return the result's address."""
    answer = client.post("/", data={"prompt": prompt, **more}, follow_redirects=False)
    assert answer.status_code == 303, Tags(answer.text).text
    return answer.headers["location"]


def finish(client, address):
    wait_for(client, address.removeprefix("/results/"))
    return client.get(address)


# --- Words, colors, presets


def test_every_language_has_every_word_and_the_same_values():
    words = load_words()
    values = {}
    for code in LANGUAGES:
        texts = msgspec.json.decode((PAGES / "words" / f"{code}.json").read_bytes(), type=dict[str, str])
        assert list(texts) == list(
            msgspec.json.decode((PAGES / "words" / "en.json").read_bytes(), type=dict[str, str])
        )
        assert all(text.strip() for text in texts.values())
        values[code] = {key: set(re.findall(r"\$([a-z]+)", text)) for key, text in texts.items()}
    assert all(values[code] == values["en"] for code in LANGUAGES)
    assert words["de"]("seconds", seconds=12.5) == "12,5 s"
    assert words["en"].number(-0.04) == "0"
    assert words["en"].number(-0.04, is_padded=True) == "0.0"
    assert (words["en"].percent(12.5), words["zh"].percent(20, is_padded=True)) == ("12.5%", "20.0%")
    assert [words[code].percent(12.5) for code in ("de", "ru")] == ["12,5\N{NO-BREAK SPACE}%"] * 2
    assert words["uk"].percent(12.5) == "12,5%"  # as Unicode's locale data and so every browser have it
    assert words["ru"].number(-9.1) == "−9,1"
    assert (words["de"].number(4294967295), words["en"].percent(-0.04)) == ("4294967295", "0%")
    assert (words["ru"].size(12_540_000), words["de"].size(900)) == ("12,5 МБ", "0,9 kB")


def test_a_moment_is_written_as_the_language_does():
    words, moment = load_words(), datetime(2026, 11, 27, 13, 8, tzinfo=UTC)
    assert words["en"].moment(moment) == "Nov 27, 2026, 1:08\N{NARROW NO-BREAK SPACE}PM"
    assert words["de"].moment(moment) == "27.11.2026, 13:08"
    assert words["zh"].moment(moment) == "2026年11月27日 13:08"


def test_every_word_of_the_templates_is_there_and_every_word_is_used():
    source = "".join(path.read_text(encoding="utf-8") for path in PAGES.glob("*.html"))
    source += "".join(path.read_text(encoding="utf-8") for path in PAGES.parent.glob("*.py"))
    script = (PAGES / "script.js").read_text(encoding="utf-8")
    keys = load_words()["en"].keys
    asked = set(re.findall(r"""\b(?:t|words)\(["']([a-z_0-9]+)["']""", source))
    assert asked - keys == {"theme_", "role_", "error_", "input_", "choice_", "color_"}
    families = (
        "theme_",
        "role_",
        "error_",
        "input_",
        "choice_",
        "color_",
        "nav_",
        "status_",
        "search_",
        "nothing_",
        "gallery_",
    )
    unused = {key for key in keys - asked if not key.startswith((*families, "script_"))}
    assert unused <= {key for key in unused if f'"{key}"' in source}
    of_script = {key.removeprefix("script_") for key in keys if key.startswith("script_")}
    assert of_script == set(re.findall(r"\bwords\.([a-z_]+)", script))


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en;q=0.5, de-AT", "de"),
        ("fr, uk;q=0.3, ru;q=0.7", "ru"),
        ("zh-Hans-CN", "zh"),
        ("en;q=0.1, de;q=0", "en"),
        ("de;q=x, ru;q=0.2", "ru"),
        (",;;=,*", "en"),
    ],
)
def test_the_language_is_the_one_that_the_browser_likes_best(accepted, language):
    assert choose_language(accepted, LANGUAGES) == language


@pytest.mark.parametrize(("chosen", "language"), [("uk", "uk"), ("xx", "de")])
def test_the_language_that_the_reader_chose_comes_first(client, chosen, language):
    page = client.get("/", headers={**HTML, "Accept-Language": "de", "Cookie": f"language={chosen}"})
    assert f'<html lang="{language}"' in page.text


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (HTML["Accept"], True),
        ("text/*", True),
        ("*/*", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=0.5, application/json", False),
        ("", False),
    ],
)
def test_an_error_is_a_page_for_who_prefers_one(client, accept, is_page):
    answer = client.get("/nothing/here", headers={"Accept": accept})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html" if is_page else "application/json")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_color_word_is_read_back_as_its_color(language):
    for name, swatch in load_swatches(language).items():
        other = "red" if name == "black" else "black"
        mix = parse_mix(write_mix({name: 40.0, other: 60.0}, language)).mix
        assert [(share.color, share.percent) for share in mix.shares] == [(name, 40), (other, 60)], swatch


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_color_of_a_palette_is_read_back_as_its_word(language):
    palette = load_palette("rubber-tile")
    swatches = load_swatches(language, palette)
    assert {swatch.color: swatch.hex for swatch in swatches.values()} == {
        color.word: color.as_seen for color in palette.colors
    }
    for word in swatches:
        other = "red" if word == "black" else "black"
        sent = read_mix(write_mix({word: 40.0, other: 60.0}, language), palette).sent
        assert [(share.color, share.percent) for share in sent.shares] == [(word, 40), (other, 60)]


def test_presets_are_in_the_palettes_words_and_within_its_bounds():
    palette = load_palette("rubber-tile")
    presets = send_presets(palette)
    assert [preset.names for preset in presets] == [preset.names for preset in load_presets()]
    for preset in presets:
        assert sum(preset.mix.values()) == 100
        assert all(palette.find(color).word == color for color in preset.mix)
        assert len(preset.mix) <= palette.most_colors
        assert not any(percent % palette.step for percent in preset.mix.values())
    black = msgspec.structs.replace(palette, colors=(palette.find("black"), palette.find("gray")))
    assert [list(preset.mix) for preset in send_presets(black)] == [["black", "gray"]]


def test_presets_total_100_of_colors_in_the_chart_and_have_names_in_every_language():
    chart = {color.name for color in load_colors()}
    for preset in load_presets():
        assert sum(preset.mix.values()) == 100
        assert preset.mix.keys() <= chart
        assert set(preset.names) == set(LANGUAGES)


# --- Pages


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("path", ["/", "/gallery", "/models", "/compare", "/login", "/nothing"])
@pytest.mark.slow
def test_every_page_speaks_every_language_and_keeps_to_its_own_files(shared, path, language):
    answer = shared.get(path, headers={"Accept-Language": language})
    tags = Tags(answer.text)
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert tags.all("html")[0]["lang"] == language
    words = load_words()[language]
    assert words("skip") in tags.text
    for tag, attributes in tags.tags:
        assert "style" not in attributes, (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "action"):
            assert attributes.get(name, "/").startswith(("/", "#")), attributes
            assert not attributes.get(name, "/").startswith("//"), attributes
    assert "<style" not in answer.text
    assert all(script.get("src") for script in tags.all("script"))
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for asset in {a["href"] for a in tags.all("link")} | {a["src"] for a in tags.all("script")}:
        assert shared.get(asset).status_code == 200
        assert "immutable" in shared.get(asset).headers["cache-control"]


def test_language_and_theme_are_chosen_by_a_form_and_kept(tmp_path, cog):
    with run(tmp_path, cog) as client:
        answer = client.post(
            "/reader", data={"language": "de", "next": "/gallery?text=x"}, follow_redirects=False
        )
        assert (answer.status_code, answer.headers["location"]) == (303, "/gallery?text=x")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        client.post("/reader", data={"theme": "dark", "next": "/"})
        tags = Tags(client.get("/", headers={**HTML, "Accept-Language": "zh"}).text)
        assert tags.all("html") == [{"lang": "de", "data-theme": "dark"}]
        assert client.post("/reader", data={"theme": "pink"}, headers=HTML).status_code == 422
        for goal in ("//evil.example", "https://evil.example", "/\\evil", "x", "/a\nb", ""):
            answer = client.post("/reader", data={"theme": "dark", "next": goal}, follow_redirects=False)
            assert answer.headers["location"] == "/", goal


def test_the_form_shows_a_first_mix_in_the_readers_words(shared):
    tags = Tags(shared.get("/", headers={"Accept-Language": "de"}).text)
    assert "50% rot, 30% schwarz, 20% perl" in tags.text
    assert "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% pearl" in tags.text
    data = json.loads(tags.all("form", id="mixer")[0]["data-studio"])
    assert data["preview"]["mix"][0] == {"color": "red", "percent": 50, "word": "rot"}
    assert [color["label"] for color in data["colors"]][:2] == ["Rot", "Terrakotta"]
    assert {rect.get("fill") for rect in tags.all("rect")} >= {"#D25346", "#393939", "#D3CFC3"}


def test_the_query_fills_the_form(shared):
    tags = Tags(shared.get("/", params={"prompt": "100% blue", "seed": "7", "width": "512"}).text)
    assert tags.all("input", id="seed")[0]["value"] == "7"
    assert tags.all("input", id="width")[0]["value"] == "512"
    assert "100% blue" in tags.text


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("(50% red:1.3), 50% black", "(50% red:1.3), 50% black"),
        ("[50% red, 50% black:50% white, 50% blue:0.5]", "50% [red, 50% black:white, 50% blue:12]"),
        ("50% {red|red}, 50% black", "50% red, 50% black"),
    ],
)
def test_a_mix_inside_the_prompt_language_is_shown_and_no_table_takes_its_place(shared, text, sent):
    read = shared.get("/preview", params={"prompt": text}).json()
    assert (read["mix"], read["notes"], read["error"]) == ([], [], None)
    assert f", {sent}, photorealistic" in read["sent_prompt"]


@pytest.mark.parametrize(
    ("text", "mix", "head", "tail"),
    [
        ("50% red, 50% black", {"red": 50, "black": 50}, "", ""),
        (
            "wet floor, 40% rot und Rest schwarz, side light",
            {"red": 40, "black": 60},
            "wet floor, ",
            ", side light",
        ),
        ("plain words", {}, "", ", plain words"),
    ],
)
def test_a_text_is_split_round_its_mix(shared, text, mix, head, tail):
    read = shared.get("/preview", params={"prompt": text}).json()
    assert {share["color"]: share["percent"] for share in read["mix"]} == mix
    assert (read["head"], read["tail"], read["error"]) == (head, tail, None)
    assert split_text(text) == (mix, head, tail)
    words = ", ".join(f"{percent:g}% {color}" for color, percent in mix.items())
    assert shared.get("/preview", params={"prompt": head + words + tail}).json()["mix"] == read["mix"]


def test_the_preview_says_what_is_wrong_and_where(shared):
    read = shared.get("/preview", params={"prompt": "50% rad, 50% black"}).json()
    assert read["error"] == "“rad” is not a color of the chart. Did you mean “red”?"
    assert (read["before"], read["marked"]) == ("50% ", "rad")
    assert shared.get("/preview", params={"prompt": "x" * 3000}).json()["error"]
    assert shared.get("/preview").json()["error"]
    long = shared.get("/preview", params={"prompt": "a floor for a playground, 50% rad, 50% black"}).json()
    assert (long["before"], long["marked"]) == ("…r for a playground, 50% ", "rad")


def test_the_page_says_what_a_setting_that_is_left_empty_will_be(shared):
    """The LoRA's strength was the manifest's there, and the calibration's in the picture."""
    fields = {field.get("name"): field for field in Tags(shared.get("/").text).all("input")}
    shown = [fields[name]["placeholder"] for name in ("guidance_scale", "lora_scale", "strength")]
    assert shown == ["1.5", "0.9", "0.2"]


def test_the_page_shows_the_draft_that_the_model_draws_from(shared):
    mix, palette = parse_mix("50% red, 50% black").mix, load_palette("rubber-tile")
    query = {"prompt": "50% red, 50% black", "seed": "3", "granule_size": "large", "width": "512"}
    answer = shared.get("/draft", params=query)
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        shown = np.asarray(picture.convert("RGB"))
    draft = draft_mix(mix, palette, 512, 1024, seed=3, granule_size="large")
    assert np.array_equal(shown, draft.pixels)
    page = shared.get("/", params={"prompt": "50% red, 50% black"}).text
    assert (
        'src="/draft?prompt=50%25+red%2C+50%25+black&amp;granule_size=medium"' in page
    )  # without the script, too


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ""},
        {"prompt": "a tile"},
        {"prompt": "50% rad, 50% black"},
        {"seed": "x"},
        {"granule_size": "huge"},
        {"width": "1001"},
    ],
)
def test_there_is_no_draft_of_what_cannot_be_laid_out(shared, changes):
    assert shared.get("/draft", params={"prompt": "50% red, 50% black"} | changes).status_code == 404


def test_a_text_without_a_mix_says_so(shared):
    """The sliders showed the mix before, and nothing told that the text was not read as one."""
    read = shared.get("/preview", params={"prompt": "wet granules in the sun"}).json()
    assert read["mix"] == []
    assert read["notes"] == ["No color mix is found in this text. It is sent as you wrote it."]


def test_the_words_that_were_read_are_marked(shared):
    text = "wet, ca. 60% rot, shiny, 40% schwarz in the sun"
    reading = shared.get("/preview", params={"prompt": text}).json()["reading"]
    assert "".join(piece["text"] for piece in reading) == text
    kept = [piece["text"].strip(" ,") for piece in reading if not piece["is_read"]]
    assert list(filter(None, kept)) == ["wet", "shiny", "in the sun"]
    assert "<mark>" in shared.get("/", params={"prompt": text}).text
    assert shared.get("/preview", params={"prompt": "wet granules in the sun"}).json()["reading"] == []


# --- The path without a script


def test_without_a_script_the_form_leads_to_a_page_that_reloads_until_the_picture_is_there(client, cog):
    cog.gate.clear()
    address = ask(
        client,
        seed="7",
        width="512",
        negative_prompt="",
        guidance_scale="2.5",
        granule_size="small",
        output_format="png",
    )
    assert cog.begun.wait(10)
    running = Tags(client.get(address).text)
    assert running.all("meta", **{"http-equiv": "refresh"})
    assert running.all("progress")
    assert running.all("form", action=f"{address}/cancel")
    cog.gate.set()
    done = Tags(finish(client, address).text)
    assert not done.all("meta", **{"http-equiv": "refresh"})
    (image,) = [a for a in done.all("img") if a["src"].startswith("/files/")]
    assert client.get(image["src"]).content == picture()
    assert done.all("a", href=image["src"], download=None)
    ((_, sent),) = cog.asked
    assert sent["input"] == {
        "prompt": MIX,
        "seed": 7,
        "width": 512,
        "guidance_scale": 2.5,
        "granule_size": "small",
        "output_format": "png",
    }


def test_a_running_prediction_is_canceled_by_a_form(client, cog):
    cog.gate.clear()
    address = ask(client)
    assert cog.begun.wait(10)
    answer = client.post(f"{address}/cancel", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    assert load_words()["en"]("status_canceled") in Tags(finish(client, address).text).text
    assert client.post("/results/x/cancel").status_code == 404


def test_the_progress_tells_step_and_time_left_in_words(client, cog):
    cog.gate.clear()
    address = ask(client)
    assert cog.begun.wait(10)
    ((attempt, _),) = cog.asked
    logs = "  4%|#| 1/25 denoise\n 48%|##| 12/25 denoise\n"
    client.post(
        "/webhooks/cog",
        content=body(attempt, "processing", logs=logs),
        headers={"Authorization": f"Bearer {cog.token}"},
    )
    deadline = time.monotonic() + 10
    while (state := client.get(f"{address}/state").json())["fraction"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (state["text"], state["fraction"], state["is_done"]) == ("Drawing: step 12 of 25", 0.48, False)
    assert re.fullmatch(r"about \d+ s left", state["detail"])
    page = Tags(client.get(address, headers={"Accept-Language": "de"}).text)
    assert "Zeichnet: Schritt 12 von 25" in page.text
    assert page.all("progress", value="0.48")
    cog.gate.set()
    finish(client, address)
    assert client.get(f"{address}/state").json()["is_done"] is True


@pytest.mark.slow
def test_one_that_waits_says_what_for(client, cog):
    """It waited "for its turn" while there was nobody to draw, and never said after how many."""
    cog.gate.clear()
    first = ask(client)
    assert cog.begun.wait(10)
    second, third = ask(client), ask(client)
    texts = [client.get(f"{address}/state").json() for address in (second, third)]
    assert [state["text"] for state in texts] == ["Waiting for its turn"] * 2
    assert [state["detail"] for state in texts] == ["1 ahead of it", "2 ahead of it"]
    cog.health = "UNHEALTHY"
    cog.gate.set()
    finish(client, first)
    deadline = time.monotonic() + 10
    while (state := client.get(f"{second}/state").json())["text"] == "Waiting for its turn":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (state["text"], state["detail"]) == ("Waiting for the model, which is not ready yet", "")
    assert state["text"] in Tags(client.get(second).text).text
    assert state["text"] in Tags(client.get(f"/?result={second.removeprefix('/results/')}").text).text
    cog.health = None
    finish(client, third)


def test_measured_shares_stand_beside_the_asked_ones(client, cog):
    metrics = {"share_red": 43.5, "share_orange": 20, "share_black": 24.5, "share_not_asked": 12}
    metrics |= {"color_error_red": 4.0, "lightness_error_red": 3.9, "color_error_orange": 1.0}
    cog.outcome = {"status": "succeeded", "output": data_uri(picture()), "metrics": metrics}
    address = ask(client, "50% red, 25% orange, 25% black")
    page = Tags(finish(client, address).text)
    assert "Red 50% 43.5% −6.5 slightly lighter" in page.text
    assert "Orange 25% 20.0% −5.0 exact" in page.text
    assert "Other colors – 12.0%" in page.text
    (bar,) = [a["aria-label"] for a in page.all("svg", role="img") if a["aria-label"].startswith("Measured")]
    assert bar == "Measured: Red 43.5%, Orange 20%, Black 24.5%, Other colors 12%"
    german = Tags(client.get(address, headers={"Accept-Language": "de"}).text)
    assert "Orange 25 % 20,0 % −5,0 genau" in german.text
    assert "43,5 %" in german.text
    assert "Farbe kann abweichen" in german.text


@pytest.mark.parametrize(
    ("error", "lightness", "english", "russian"),
    [
        (2.9, -2.9, "exact", "точный"),
        (4, 4, "slightly lighter", "чуть светлее"),
        (4, -3, "slightly darker", "чуть темнее"),
        (4, 2, "slightly different", "чуть другой"),
        (7, 7, "lighter", "светлее"),
        (7, -7, "darker", "темнее"),
        (7, None, "different", "другой"),
        ("7", 7, None, None),
        (None, 7, None, None),
    ],
)
def test_a_colors_error_is_told_in_words(error, lightness, english, russian):
    metrics = {"color_error_red": error, "lightness_error_red": lightness}
    found = {"id": "1", "url": None, "is_done": True, "error": None, "status": "succeeded", "input": {}}
    found |= {"metrics": metrics, "sent": {"red": 100.0}}
    for code, told in (("en", english), ("ru", russian)):
        view = ResultView(found, load_words()[code], None)
        assert [share.color for share in view.shares] == [told]
        assert view.is_color_measured == (told is not None)


def test_a_failure_says_why(client, cog):
    cog.outcome = {"status": "failed", "error": f"out of memory {NASTY}"}
    page = finish(client, ask(client))
    assert "out of memory &lt;script&gt;" in page.text
    assert load_words()["en"]("status_failed") in page.text


def test_back_to_the_form_fills_it_again(client):
    address = ask(client, "30% red, 70% black, wet", seed="9", height="640", lora_scale="0.5")
    finish(client, address)
    identity = address.rpartition("/")[2]
    tags = Tags(client.get("/", params={"from": identity}).text)
    values = {a["name"]: a.get("value") for a in tags.all("input") if "name" in a}
    assert {"seed": "9", "height": "640", "lora_scale": "0.5"}.items() <= values.items()
    assert "30% red, 70% black, wet" in tags.text
    again = Tags(client.get(address).text)
    hidden = {a["name"]: a["value"] for a in again.all("input", type="hidden")}
    assert "seed" not in hidden
    assert hidden["lora_scale"] == "0.5"
    assert client.get("/", params={"from": "nothing"}).status_code == 200


def test_more_pictures_are_asked_for_at_once_each_with_its_own_seed(client):
    first = ask(client, "30% red, 70% black", height="640")
    page = Tags(finish(client, first).text)
    fields = {a["name"]: a["value"] for a in page.all("input", type="hidden")}
    (button,) = page.all("button", name="more")
    assert "8 more" in page.text
    answer = client.post("/", data=fields | {"more": button["value"]}, follow_redirects=False)
    assert answer.status_code == 303
    found = client.get("/api/predictions", params={"limit": "20"}).json()["predictions"]
    asked = [each for each in found if f"/results/{each['id']}" != first]
    assert len(asked) == 8
    assert len({each["input"]["seed"] for each in asked}) == 8
    assert {each["input"]["height"] for each in asked} == {640}
    assert answer.headers["location"] == f"/results/{asked[-1]['id']}"


# --- The table of colors


def table(mix, text, rows, rest=None, was=None):
    """What a browser without a script sends."""
    fields = [
        ("prompt", text),
        ("prompt_was", was if was is not None else text),
        ("table_was", mix),
    ]
    for color, percent in rows:
        fields += [("color", color), ("percent", percent)]
    return FormData(fields + ([("rest", str(rest))] if rest is not None else []))


@pytest.mark.parametrize(
    ("rows", "rest", "prompt"),
    [
        ([("red", "50"), ("black", "50")], None, "50% red, 50% black, wet"),
        ([("red", "60"), ("black", "40"), ("", "")], None, "60% rot, 40% schwarz, wet"),
        ([("red", "60"), ("black", "")], 1, "60% rot, 40% schwarz, wet"),
        ([("red", "12,5"), ("black", "1"), ("pearl", "30")], 1, "12.5% rot, 57.5% schwarz, 30% perl, wet"),
        ([("red", "90"), ("black", "40")], 1, "90% rot, 10% schwarz, wet"),
        ([("red", "30"), ("red", "30"), ("black", "40")], None, "60% rot, 40% schwarz, wet"),
    ],
)
def test_the_table_changes_the_mix_and_keeps_the_words_round_it(rows, rest, prompt):
    text = "50% red, 50% black, wet"
    form, wanted = read_page_form(table("red=50;black=50", text, rows, rest), "de")
    assert form.error is None
    assert wanted.prompt == prompt


@pytest.mark.parametrize(
    ("rows", "text", "was", "error", "field"),
    [
        ([("red", "60"), ("black", "50")], MIX, None, "shares total 110%, expected 100%", "prompt"),
        ([("red", "x"), ("black", "50")], MIX, None, "share 'x' of red is not a number", "prompt"),
        ([("", "")], MIX, None, "the table of colors is empty", "prompt"),
        (
            [("red", "60"), ("black", "40")],
            "100% blue",
            MIX,
            "the text and the table were both",
            "prompt",
        ),
    ],
)
def test_a_table_that_is_not_clear_is_refused_at_its_field(rows, text, was, error, field):
    form, wanted = read_page_form(table("red=50;black=50", text, rows, None, was), "en")
    assert wanted is None
    assert str(form.error).startswith(error)
    assert form.error.field == field


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"prompt": "50% rad, 50% black"}, "“rad” is not a color of the chart", "prompt"),
        ({"prompt": ""}, "Write a mix, or choose colors above.", "prompt"),
        ({"seed": "-2"}, "Expected \N{MINUS SIGN}1 to 4294967295.", "seed"),
        ({"seed": "1.5"}, "“1.5” is not a whole number.", "seed"),
        ({"width": "257"}, "Expected 256 to 1536, a multiple of 8.", "width"),
        ({"guidance_scale": "99"}, "Expected 1 to 20.", "guidance_scale"),
        ({"negative_prompt": "x" * 3000}, "3000 characters, at most 2000", "negative_prompt"),
        ({"output_format": "gif"}, "“gif” is not one of the choices: png, webp, jpeg", "output_format"),
    ],
)
def test_what_predict_would_refuse_is_shown_at_its_field_and_nothing_is_queued(shared, fields, error, field):
    before = shared.get("/api/predictions").json()
    answer = shared.post("/", data={"prompt": MIX, **fields})
    assert answer.status_code == 422
    assert error in answer.text
    tags = Tags(answer.text)
    assert tags.all("p", id="error", role="alert")
    (blamed,) = [a for _, a in tags.tags if a.get("aria-invalid") == "true"]
    assert (blamed["name"], blamed["aria-describedby"]) == (field, "error")
    assert shared.get("/api/predictions").json() == before


# --- Gallery, comparison, record


def test_the_gallery_finds_by_color_and_by_text_a_page_at_a_time(client, monkeypatch):
    monkeypatch.setattr("tilemix.studio.web.results.PAGE_SIZE", 2)
    texts = ["50% red, 50% black", "50% red, 50% pearl, wet", "100% blue"]
    addresses = [ask(client, text) for text in texts]
    for address in addresses:
        finish(client, address)

    def find(path="/gallery", **query):
        tags = Tags(client.get(path, params=query or None).text)
        shown = [a["src"].rpartition("/")[2] for a in tags.all("img") if a["src"].startswith("/thumbnails/")]
        older = [a["href"] for a in tags.all("a", rel="next")]
        return [addresses.index(f"/results/{identity}") for identity in shown], older

    shown, (older,) = find()
    assert shown == [2, 1]
    assert find(older) == ([0], [])
    assert find(color="red") == ([1, 0], [])
    assert find(text="WET") == ([1], [])
    assert find(color="blue", text="red") == ([], [])
    refused = client.get("/gallery", params={"color": "blurple"}, headers={"Accept-Language": "de"})
    assert refused.status_code == 422
    assert "Die Farbe „blurple“ ist hier unbekannt. Am nächsten: blue, " in refused.text
    assert load_words()["en"]("nothing_found") in client.get("/gallery", params={"text": "x\0y%_"}).text
    small = client.get(f"/thumbnails/{addresses[0].rpartition('/')[2]}")
    assert small.headers["content-type"] == "image/webp"
    assert client.get("/thumbnails/x").status_code == 404


def test_the_gallery_finds_a_text_whatever_the_size_of_its_letters(client):
    """On SQLite "мокрый" did not find "Мокрый": its own lower() knows the letters of English only."""
    finish(client, ask(client, "50% Красный, 50% чёрный, МОКРЫЙ пол"))
    for text in ("мокрый", "Мокрый", "красный", "RED"):
        assert len(client.get("/api/predictions", params={"text": text}).json()["predictions"]) == 1, text


def test_a_long_prompt_makes_a_short_title(client):
    """Without a mix the whole prompt was the title, and a card as long as it stood in the gallery."""
    address = ask(client, "a floor " * 100)
    finish(client, address)
    for path, where in ((address, "<h1>{}</h1>"), ("/gallery", ">{}</a></p>")):
        assert where.format("a floor " * 9 + "a floor…") in client.get(path).text


def test_the_gallery_shows_pictures_only_and_says_when_it_has_none(client, cog):
    assert load_words()["en"]("gallery_empty") in client.get("/gallery").text
    cog.outcome = {"status": "failed", "error": "no"}
    finish(client, ask(client))
    assert load_words()["en"]("gallery_empty") in client.get("/gallery").text


def test_two_results_stand_side_by_side(client):
    addresses = [ask(client, text, seed=seed) for text, seed in ((MIX, "1"), ("100% blue", "2"))]
    for address in addresses:
        finish(client, address)
    one, two = (address.rpartition("/")[2] for address in addresses)
    page = Tags(client.get("/compare", params={"id": [one, two]}).text)
    assert [a["src"] for a in page.all("img") if "/files/" in a["src"]] == [f"/files/{one}", f"/files/{two}"]
    for ids in ([], [one], [one, one], [one, "x"], [one, two, "x"][::2]):
        answer = client.get("/compare", params={"id": ids})
        assert (answer.status_code, load_words()["en"]("compare_two") in answer.text) == (422, True)
    picked = Tags(client.get("/gallery", params={"pick": one}).text)
    assert [a["value"] for a in picked.all("input", type="checkbox", name="id") if "checked" in a] == [one]


def test_what_comes_from_outside_is_escaped_everywhere(client):
    address = ask(client, f"50% red, 50% black, {NASTY}")
    finish(client, address)
    identity = address.rpartition("/")[2]
    paths = [address, f"/?from={identity}", f"/?result={identity}", "/gallery", f"/gallery?text={NASTY}"]
    paths += [f"/compare?id={identity}&id=x", f"/gallery?pick={identity}", f"/?prompt={NASTY}", f"/x{NASTY}"]
    for path in paths:
        text = client.get(path).text
        assert "<script>alert" not in text, path
        assert '" onload="' not in text, path


# --- Safety


def test_the_forms_take_nothing_from_other_origins(shared):
    for path in ("/", "/reader", "/results/x/cancel", "/login", "/logout"):
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = shared.post(path, data={"prompt": MIX, "theme": "dark"}, headers=headers)
            assert answer.status_code == 403
            assert load_words()["en"]("error_403") in answer.text


def test_a_person_logs_in_with_the_token_and_out_again(tmp_path, cog):
    token = "a-token-of-the-studio"  # noqa: S105  a test's own
    with run(tmp_path, cog, token=Secret(token), host="0.0.0.0") as client:  # noqa: S104  a value under test
        client.headers.update(HTML)
        answer = client.get("/gallery?color=red", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            "/login?next=%2Fgallery%3Fcolor%3Dred",
        )
        page = Tags(client.get(answer.headers["location"]).text)
        assert page.all("input", name="next", value="/gallery?color=red")
        assert client.get(page.all("link", rel="stylesheet")[0]["href"]).status_code == 200
        wrong = client.post("/login", data={"token": "wrong", "next": "/gallery"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        answer = client.post(
            "/login", data={"token": token, "next": "/gallery?color=red"}, follow_redirects=False
        )
        assert (answer.status_code, answer.headers["location"]) == (303, "/gallery?color=red")
        cookie = answer.headers["set-cookie"]
        assert token not in cookie
        assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
        assert client.get("/gallery").status_code == 200
        assert client.get("/api/predictions").status_code == 200
        assert client.post("/api/predictions", json={"prompt": MIX}).status_code == 201
        assert client.post("/logout", follow_redirects=False).headers["location"] == "/login"
        assert client.get("/api/predictions").status_code == 401
        client.cookies.set("tilemix_session", "0" * 64)
        assert client.get("/api/predictions").status_code == 401


def test_a_session_ends_at_logout_and_outlives_a_restart(tmp_path, cog):
    """A copy of the cookie went on working for 30 days."""
    with run(tmp_path, cog, token=Secret(TOKEN)) as client:
        client.post("/login", data={"token": TOKEN})
        cookie = client.cookies["tilemix_session"]
    headers = {"Cookie": f"tilemix_session={cookie}"}
    with run(tmp_path, cog, token=Secret(TOKEN)) as client:
        assert client.get("/api/predictions", headers=headers).status_code == 200
        client.post("/logout", headers=headers)
        assert client.get("/api/predictions", headers=headers).status_code == 401
    with run(tmp_path, cog, token=Secret(TOKEN)) as client:
        assert client.get("/api/predictions", headers=headers).status_code == 401


@pytest.mark.slow
def test_guesses_at_the_token_are_limited_for_each_address(tmp_path, cog):
    with run(tmp_path, cog, token=Secret(TOKEN), proxies=("127.0.0.0/8",), rate_limit=NoLimit()) as client:
        client.post("/login", data={"token": TOKEN})
        for number in range(GUESSES_AT_ONCE):
            if number % 2:
                answer = httpx_client(client).post("/login", data={"token": f"wrong {number}"})
            else:
                wrong = {"Authorization": f"Bearer wrong-{number}"}
                answer = httpx_client(client).get("/api/predictions", headers=wrong)
            assert answer.status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx_client(client).get("/api/predictions", headers=right)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "studio-too-many-guesses")
        assert httpx_client(client).post("/login", data={"token": TOKEN}).status_code == 429
        assert client.get("/api/predictions").status_code == 200  # who is logged in does not guess
        visitor = {**right, "X-Forwarded-For": "10.0.0.1, 203.0.113.7"}
        stranger = httpx_client(client, ("192.0.2.1", 1))
        assert (
            httpx_client(client, ("127.0.0.1", 1)).get("/api/predictions", headers=visitor).status_code == 200
        )
        assert stranger.get("/api/predictions", headers=right).status_code == 200


def httpx_client(client, peer=("198.51.100.1", 1)):
    """Another client of the same studio, without its cookies."""
    return TestClient(client.app, base_url=str(client.base_url), client=peer)


def test_a_session_ends_with_its_token(tmp_path, cog):
    with run(tmp_path, cog, token=Secret("a-token-of-the-studio")) as client:
        client.post("/login", data={"token": "a-token-of-the-studio"})
        session = client.cookies["tilemix_session"]
    with run(tmp_path, cog, token=Secret("another-token-of-the-studio")) as client:
        client.cookies.set("tilemix_session", session)
        assert client.get("/api/predictions").status_code == 401


def test_the_cookie_is_secure_where_the_page_is(tmp_path, cog):
    with run(tmp_path, cog, public_url="https://tiles.example") as client:
        for host, is_secure in (("tiles.example", True), ("127.0.0.1:8000", False)):
            answer = client.post(
                "/reader", data={"theme": "dark"}, headers={"Host": host}, follow_redirects=False
            )
            assert ("Secure" in answer.headers["set-cookie"]) is is_secure


def test_errors_are_pages_for_browsers_and_json_for_programs(shared):
    assert "<!doctype html>" in shared.get("/nothing").text
    for path, headers in (("/nothing", {"Accept": "*/*"}), ("/api/predictions/x", {}), ("/files/x", {})):
        answer = shared.get(path, headers=headers)
        assert (answer.status_code, set(answer.json()["error"])) == (
            404,
            {"code", "field", "message", "values"},
        )
    assert "<!doctype html>" in shared.get("/", headers={"Host": "evil.example"}).text


def test_an_error_page_speaks_the_readers_language(shared):
    headers = {"Accept": "text/html", "Accept-Language": "de"}
    for path, text in (
        ("/results/x", "Dieses Bild gibt es nicht."),
        ("/x", "Unter dieser Adresse gibt es nichts."),
    ):
        answer = shared.get(path, headers=headers)
        assert answer.status_code == 404
        assert text in answer.text


def test_a_failure_is_told_in_the_readers_language(client, cog):
    cog.outcome = {"status": "succeeded", "output": "data:text/html;base64,AAAA"}
    page = finish(client, ask(client)).url
    answer = client.get(page, headers={"Accept-Language": "ru"})
    assert "это не изображение; нужен файл PNG, WebP или JPEG" in answer.text


# --- The model's files


def test_the_model_page_shows_what_inspect_says(shared):
    page = Tags(shared.get("/models").text)
    lora = ROOT / "weights" / "miniature" / "rubber-tile-miniature_sdxl_lora.safetensors"
    autov2 = hashlib.sha256(lora.read_bytes()).hexdigest()[:10].upper()
    for text in (
        "SDXL",
        "Rank 16",
        "Strength 0.9",
        f"Hash {autov2}",
        "AUTOV2",
        "ohwx_rubber_tile",
        "<s0> <s1>",
    ):
        assert text in page.text


def test_the_answers_about_model_files_are_kept_until_a_file_changes(tiny_project, tmp_path):
    asked = []

    def inspect(path, stamp):
        asked.append(path)
        return ask_command_line(path, stamp)

    files = ModelFiles("tiny", tmp_path / "cache.json", tiny_project, inspect=inspect)
    first = files.list_entries()
    assert [(entry.role, entry.is_here, entry.inspected["kind"]) for entry in first] == [
        ("base", True, "diffusers")
    ]
    assert files.list_entries() == first
    assert len(asked) == 1
    (tmp_path / "cache.json").write_text("{")
    assert files.list_entries() == first
    assert len(asked) == 2


def test_a_model_file_that_cannot_be_read_says_why(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no model at all")
    answer = ask_command_line(path, "stamp")
    assert answer.inspected is None
    assert answer.error["values"]["file"] == "x.safetensors"
    assert "x.safetensors" in explain_data(answer.error, load_words()["de"])


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(3)", "studio-inspection-failed"),
        ("import time; time.sleep(60)", "studio-inspection-late"),
    ],
)
def test_an_inspection_that_says_nothing_is_told(tmp_path, monkeypatch, program, code):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("tilemix.studio.model_files.INSPECT_SECONDS", 0.2 if "time" in program else 60)
    assert ask_command_line(tmp_path / "x.safetensors", "stamp").error["code"] == code


def test_a_studio_of_the_makers_model_shows_sends_and_keeps_his_colors(tmp_path, cog):
    palette = load_palette("rubber-tile")
    with run(tmp_path, cog, rate_limit=NoLimit(), model="rubber-tile") as client:
        client.headers.update(HTML)
        tags = Tags(client.get("/", headers={"Accept-Language": "en"}).text)
        data = json.loads(tags.all("form", id="mixer")[0]["data-studio"])
        assert {color["color"]: color["hex"] for color in data["colors"]} == {
            color.word: color.as_seen for color in palette.colors
        }
        asked = "50% purple, 30% салатовый, 20% olive"
        preview = client.get("/preview", params={"prompt": asked}, headers={"Accept-Language": "de"}).json()
        assert [(row["color"], row["word"]) for row in preview["mix"]] == [
            ("violet", "violett"),
            ("lime green", "limettengrün"),
            ("khaki", "khaki"),
        ]
        assert "ohwx_rubber_tile <s0><s1>, 50% violet, 30% lime green, 20% khaki, " in preview["sent_prompt"]
        assert len(preview["notes"]) == 2
        made = client.post("/api/predictions", json={"prompt": asked}).json()
        assert made["mix"] == {"purple": 50.0, "lime green": 30.0, "olive": 20.0}
        assert made["sent"] == {"violet": 50.0, "lime green": 30.0, "khaki": 20.0}
        assert [(note["code"], note["values"]["nearest"]) for note in made["notes"]] == [
            ("mix-sent-as-nearest", "violet"),
            ("mix-sent-as-nearest", "khaki"),
        ]
        found = client.get("/api/predictions", params={"color": "violet"}).json()["predictions"]
        assert [each["id"] for each in found] == [made["id"]]
        text = client.get("/openapi.json").text
        assert "Colors of this model: beige, black, blue, " in text
        finish(client, f"/results/{made['id']}")


def test_a_text_without_a_mix_says_so_in_the_answer(client):
    made = client.post("/api/predictions", json={"prompt": "wet granules"}).json()
    assert (made["mix"], made["sent"]) == ({}, {})
    assert [note["code"] for note in made["notes"]] == ["mix-not-found"]
    assert made["notes"][0]["message"] == "no color mix found; sent as typed"


# --- The prompt language, and pictures to repeat


def test_the_page_knows_the_models_adapters_and_makes_the_choices_of_the_seed(shared):
    answer = shared.get("/preview", params={"prompt": "100% black <lora:nothing:1>"}).json()
    assert "rubber-tile-miniature_sdxl_lora" in answer["error"]
    text = "60% {red|blue|green|white}, 40% black"
    context = make_context(load_manifest("miniature"), seed=11, steps=25)
    expected = rewrite(text, find_template("miniature"), load_palette("rubber-tile"), context=context)
    preview = shared.get("/preview", params={"prompt": text, "seed": "11"}).json()
    assert preview["sent_prompt"] == expected.positive
    assert shared.get("/preview", params={"prompt": text, "seed": "1e9"}).json()["error"] is None


def test_choices_of_a_fresh_seed_are_those_that_are_drawn(client):
    identity = ask(client, "100% {red|blue|green|white|black}").removeprefix("/results/")
    given = client.get(f"/api/predictions/{identity}").json()
    context = make_context(load_manifest("miniature"), seed=given["input"]["seed"], steps=25)
    prompt = rewrite(
        given["input"]["prompt"], find_template("miniature"), load_palette("rubber-tile"), context=context
    )
    assert given["sent_prompt"] == prompt.positive


def drop(client, content, name="a.png"):
    return client.post("/from-picture", files={"picture": (name, content, "image/png")})


def test_a_picture_of_ours_fills_the_form(shared):
    record = make_record(model="miniature", prompt="50% red, 50% blue", seed=77, lora_scale=0.4)
    page = Tags(drop(shared, encode_image(PIXELS, record, output_format="webp")).text)
    assert "50% red, 50% blue" in page.text
    assert page.all("input", name="seed")[0]["value"] == "77"
    assert page.all("input", name="lora_scale")[0]["value"] == "0.4"
    assert page.all("input", name="strength")[0]["value"] == "1.0"
    assert load_words()["en"]("picture_taken") in page.text


def test_another_programs_picture_fills_the_form_and_says_what_it_cannot(shared):
    chunks = PngInfo()
    text = f"{NASTY} <lora:shine:1>\nSteps: 30, Sampler: Heun, Seed: 5, Size: 512x768, Model: x"
    chunks.add_text("parameters", text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=chunks)
    answer = drop(shared, buffer.getvalue())
    page = Tags(answer.text)
    assert answer.status_code == 200
    assert NASTY not in answer.text
    assert page.all("input", name="height")[0]["value"] == "768"
    assert "Sampler: Heun in the picture, " in page.text
    assert "The picture does not say guidance_scale. The model's own values are taken." in page.text
    assert "Cannot be repeated here: lora shine." in page.text


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"x" * 1000])
def test_what_is_not_a_picture_is_said_on_the_page(shared, content):
    answer = drop(shared, content, NASTY)
    assert answer.status_code == 422
    assert "not a picture" in Tags(answer.text).text
    assert NASTY not in answer.text


def test_a_dropped_picture_has_a_limit_and_other_forms_keep_theirs(shared):
    assert drop(shared, b"x" * MAX_PICTURE_BYTES).status_code == 413
    assert shared.post("/", data={"prompt": "x" * 2**18}).status_code == 413
    assert shared.post("/from-picture", data={"picture": "text"}).status_code == 422


@pytest.mark.slow
def test_the_form_shows_the_prompt_colors_and_defaults_of_the_task_that_is_chosen(tmp_path, cog):
    """The preview was the served model's, whatever the task."""
    root = tmp_path / "root"
    (root / "weights").mkdir(parents=True)
    (root / "weights/rubber-tile.model.json").symlink_to(ROOT / "weights/rubber-tile.model.json")
    served = json.loads((ROOT / "weights/miniature.model.json").read_text()) | {"palette": None}
    (root / "weights/miniature.model.json").write_text(json.dumps(served))
    (root / "prompt_templates").symlink_to(ROOT / "prompt_templates")
    tasks = {
        "maker": {"model": "rubber-tile", "template": "plain", "adapters": {}},
        "own": {},
        "gone": {"model": "x"},
    }
    (root / "weights/tasks.json").write_text(json.dumps(tasks))
    palette = load_palette("rubber-tile")
    with run(tmp_path, cog, rate_limit=NoLimit(), root=root) as client:
        client.headers.update(HTML)

        def preview(**values):
            return client.get("/preview", params={"prompt": "50% red, 50% khaki"} | values).json()

        made = preview(task="maker")
        assert made["sent_prompt"] == "50% red, 50% khaki"
        assert [row["color"] for row in made["mix"]] == ["red", "khaki"]
        assert {color["color"] for color in made["colors"]} == {color.word for color in palette.colors}
        assert (made["placeholders"]["width"], made["placeholders"]["lora_scale"]) == (1024, "")
        assert preview(task="own") == preview()
        assert preview()["sent_prompt"].startswith("ohwx_rubber_tile <s0><s1>, 50% red, ")
        line = "tasks.json: task 'gone': there is no model 'x'; the nearest: "
        assert preview(task="gone")["error"].startswith(line)
        assert preview(task="nothing")["error_field"] == "task"
        draft = {"prompt": "50% red, 50% khaki"}
        drawn = [
            client.get("/draft", params=draft | task) for task in ({"task": "maker"}, {"task": "own"}, {})
        ]
        assert drawn[0].content != drawn[1].content == drawn[2].content
        page = client.get("/", params=draft | {"task": "maker"}).text
        data = json.loads(Tags(page).all("form", id="mixer")[0]["data-studio"])
        assert data["preview"]["sent_prompt"] == made["sent_prompt"]
        assert data["colors"] == made["colors"]
        refused = client.post("/", data=draft | {"task": "nothing"})
        assert refused.status_code == 422
        assert "nothing" in refused.text
