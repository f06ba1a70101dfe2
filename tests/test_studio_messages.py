"""What the library says of a text or a setting, in the reader's words: every kind, brought about for real."""

import pytest
from sqlalchemy.orm import Session

from tests.studio_parts import START
from tests.test_studio_page import table
from tilemix.colors.palette import load_palette
from tilemix.errors import ManifestError, Message, MixError, PromptError, RequestError, read_metrics
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.request import GenerationRequest
from tilemix.studio.predictions import Report, apply_report
from tilemix.studio.store.schema import Prediction
from tilemix.studio.web.messages import explain, explain_data
from tilemix.studio.web.mix_form import read_page_form
from tilemix.studio.web.words import LANGUAGES, load_words

TEXTS = {
    "mix-unknown-color": "50% schwrz, 50% red",
    "mix-total": "50% red, 20.5% dark green",
    "mix-total-of-many": "1% red, " * 20,
    "mix-no-color": "50% red, 50%",
    "mix-no-percent": "red, 50% black, 20%",
    "mix-bad-percent": "1.2.3% red, 50% black",
    "mix-range": "20-30% red, 70% black",
    "mix-unknown-ral": "50% red, 50% RAL 9999",
    "mix-bad-hex": "50% #12345, 50% red",
    "mix-two-colors": "50% red (RAL 9005), 50% black",
    "mix-two-rests": "20% white, rest red, rest black",
    "prompt-empty": " ",
    "prompt-too-long": "x" * 2001,
    "prompt-control-character": "50% red\a, 50% black",
    "prompt-surrogate": "50% red\ud800, 50% black",
}
SETTINGS = {
    "input-not-multiple": {"width": "257"},
    "input-out-of-range": {"guidance_scale": "99"},
    "input-not-integer": {"seed": "1.5"},
    "input-not-number": {"lora_scale": "much"},
    "input-unknown-choice": {"output_format": "gif"},
}
TABLES = {
    "mix-table-empty": ("50% red, 50% black", [("", "")]),
    "mix-bad-share": ("50% red, 50% black", [("red", "x"), ("black", "50")]),
    "mix-both-changed": ("100% blue", [("red", "60"), ("black", "40")]),
}
NOTES = {
    "mix-sent-as-typed": "50% red, 50% vermillion",
    "mix-read-beside": "50% bright red (RAL 3001), 50% black",
    "mix-read-as-nearest": "50% RAL 3001, 50% black",
}
OF_THE_PALETTE = {
    "mix-sent-as-nearest": "50% purple, 50% black",
    "mix-sent-by-its-word": "50% bright green, 50% black",
    "mix-colors-merged": "30% lime green, 20% bright green, 50% black",
    "mix-many-colors": "40% red, 20% black, 20% pearl, 10% white, 10% blue",
    "mix-between-steps": "55% red, 45% black",
    "mix-known-by-another-word": "ohwx_rubber_tile, 50% rot, 50% black",
}


def bring_about(code: str) -> Message:
    template = find_template("rubber_tile")
    if code in OF_THE_PALETTE:
        notes = rewrite(OF_THE_PALETTE[code], template, load_palette("rubber-tile")).notes
        return next(note for note in notes if note.code == code)
    if code == "mix-no-such-color":
        with pytest.raises(PromptError) as raised:
            rewrite("50% gold, 50% red", template, load_palette("rubber-tile"))
        return raised.value.message
    if code in NOTES:
        (note,) = rewrite(NOTES[code], template).notes
        return note
    if code in TEXTS:
        with pytest.raises((PromptError, RequestError)) as raised:
            rewrite(GenerationRequest(prompt=TEXTS[code]).prompt, template)
        return raised.value.message
    if code in SETTINGS:
        given = table("red=50;black=50", "50% red, 50% black", [("red", "50"), ("black", "50")])
        form, _ = read_page_form(type(given)([*given.multi_items(), *SETTINGS[code].items()]), "en")
    else:
        text, rows = TABLES[code]
        form, _ = read_page_form(table("red=50;black=50", text, rows, None, "50% red, 50% black"), "en")
    assert form.error is not None
    return form.error


@pytest.mark.parametrize("code", [*TEXTS, *SETTINGS, *TABLES, *NOTES, *OF_THE_PALETTE, "mix-no-such-color"])
def test_every_kind_is_said_in_every_language(code):
    """They were shown in English, whatever the reader's language was."""
    message = bring_about(code)
    assert message.code == code
    said = {language: explain(message, words) for language, words in load_words().items()}
    assert str(message) not in said.values()
    assert len(set(said.values())) >= len(LANGUAGES) - 1  # Russian and Ukrainian share a short one
    assert not any(" at character " in text or "{" in text for text in said.values())


def test_a_refusal_says_in_the_readers_words_what_was_understood():
    with pytest.raises(PromptError) as raised:
        rewrite("50% rot, 50% RAL 9999", find_template("rubber_tile"))
    words = load_words()
    assert explain(raised.value.message, words["en"]) == (
        "RAL Classic has no number “RAL 9999”. Understood so far: 50% red."
    )
    assert explain(raised.value.message, words["uk"]).endswith("До цього місця зрозуміло: 50% червоний.")


def test_a_note_names_the_palettes_colors_in_the_readers_words():
    note = bring_about("mix-sent-as-nearest")
    assert explain(note, load_words()["de"]) == (
        "lila zeichnet dieses Modell nicht. Gesendet wird die nächste Farbe, violett (Delta E 11,8)."
    )
    assert explain(bring_about("mix-colors-merged"), load_words()["de"]).endswith("zusammen 50\xa0%.")
    assert explain(bring_about("mix-colors-merged"), load_words()["en"]) == (
        "The model draws lime green, bright green alike: they are sent as lime green, 50% in all."
    )


def test_numbers_and_colors_in_them_are_the_readers():
    words = load_words()
    total = bring_about("mix-total")
    assert explain(total, words["en"]) == (
        "The shares add up to 70.5% and not to 100%. Read: 50% red, 20.5% dark green."
    )
    assert explain(total, words["de"]).replace("\xa0", " ") == (
        "Die Anteile ergeben 70,5 % statt 100 %. Gelesen: 50 % rot, 20,5 % dunkelgrün."
    )
    color = bring_about("mix-unknown-color")
    assert explain(color, words["ru"]) == "Цвета «schwrz» нет в карте. Возможно, «schwarz»?"
    assert explain(bring_about("mix-two-colors"), words["uk"]) == (
        "В одній частці два кольори: чорний, червоний."
    )
    assert explain(bring_about("input-out-of-range"), words["de"]) == "Erwartet: 1 bis 20."


def test_english_is_the_librarys_own_line_where_the_page_has_no_other():
    message = Message("input-missing", {}, "prompt")
    assert explain(message, load_words()["en"]) == str(message) == "input prompt is missing"


def test_an_error_that_the_model_recorded_is_said_in_the_readers_words():
    """It came as "Prediction failed: Prediction failed: PromptError: ..." in every language."""
    text = "Prediction failed: MixError: two shares say 'rest', expected one"
    metrics = {"error_code": "mix-two-rests", "error_field": "prompt", "error_values": "{}"}
    report = Report(remote_id="1", status="failed", error=text, metrics=metrics)
    prediction = Prediction(status="processing", logs="", metrics={})
    apply_report(Session(), prediction, report, now=START)
    assert prediction.error == Message("mix-two-rests", {}, "prompt").describe()


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"error_code": "mix-two-rests", "error_field": "prompt"},
        {"error_code": "of-another-version", "error_values": "{}"},
        {"error_code": "mix-no-color", "error_values": '{"typed": "50%"}'},
        {"error_code": "mix-no-color", "error_values": '{"typed": "50%", "posi'},
        {"error_code": ["mix-two-rests"], "error_values": "{}"},
        {"error_code": "mix-two-rests", "error_field": 1, "error_values": "{}"},
    ],
)
def test_an_error_that_cannot_be_said_falls_back_to_the_back_ends_text(metrics):
    report = Report(remote_id="1", status="failed", error="it failed", metrics=metrics)
    prediction = Prediction(status="processing", logs="", metrics={})
    apply_report(Session(), prediction, report, now=START)
    assert prediction.error == Message("prediction-failed", {"reason": "it failed"}).describe()


def test_a_truth_value_that_was_refused_comes_back_from_the_metrics():
    message = Message("input-not-text", {"typed": True}, "negative_prompt")
    assert read_metrics(message.to_metrics()) == message


def test_an_error_that_a_database_kept_is_said_even_if_its_code_is_gone():
    kept = Message("prediction-lost", {"count": 3}).describe()
    words = load_words()["de"]
    assert explain_data(kept, words) == "Das Backend ist beim Zeichnen 3-mal ausgefallen."
    assert explain_data(kept | {"code": "of-another-version"}, words) == kept["message"]


AS_JSON = '{"colors": [{"name": "red", "share": 50}, {"name": "black", "share": 20.5}]}'


@pytest.mark.parametrize("text", ["50% red, 20.5% black", AS_JSON])
def test_the_shares_that_were_read_are_written_in_the_readers_language(text):
    with pytest.raises(MixError) as raised:
        parse_mix(text)
    assert raised.value.values["mix"] == "50% red, 20.5% black"
    assert "50 % rot, 20,5 % schwarz" in explain(raised.value.message, load_words()["de"]).replace(
        "\xa0", " "
    )


def test_an_error_inside_another_is_said_in_the_readers_language_too():
    """It was quoted in English in the middle of a German sentence."""
    inner = RequestError("input-out-of-range", field="width", typed=5, low=256, high=1536)
    outer = ManifestError("manifest-bad-defaults", file="tile.model.json", **inner.message.as_reason())
    assert str(inner) in str(outer)
    for language, words in load_words().items():
        said = explain(outer.message, words)
        assert explain(inner.message, words) in said
        assert language == "en" or str(inner) not in said
