"""What the library says of a text or a setting, in the reader's words: every kind, brought about for real."""

import pytest

from tests.test_studio_page import table
from tilemix.errors import PromptError, RequestError
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.request import GenerationRequest
from tilemix.studio.web.complaints import KINDS, explain
from tilemix.studio.web.mix_form import read_page_form
from tilemix.studio.web.words import LANGUAGES, load_words

TEXTS = {
    "wrong_color": "50% schwrz, 50% red",
    "wrong_total": "50% red, 20.5% dark green",
    "wrong_no_color": "50% red, 50%",
    "wrong_no_percent": "red, 50% black, 20%",
    "wrong_percent": "1.2.3% red, 50% black",
    "wrong_range": "20-30% red, 70% black",
    "wrong_ral": "50% red, 50% RAL 9999",
    "wrong_hex": "50% #12345, 50% red",
    "wrong_pair": "50% red (RAL 9005), 50% black",
    "wrong_rests": "20% white, rest red, rest black",
    "wrong_empty": " ",
    "wrong_long": "x" * 2001,
    "wrong_character": "50% red\a, 50% black",
}
SETTINGS = {
    "wrong_multiple": {"width": "257"},
    "wrong_limits": {"guidance_scale": "99"},
    "wrong_integer": {"seed": "1.5"},
    "wrong_number": {"lora_scale": "much"},
}
NOTES = {
    "note_as_typed": "50% red, 50% vermillion",
    "note_beside": "50% bright red (RAL 3001), 50% black",
    "note_nearest": "50% RAL 3001, 50% black",
}


def complaint_about(kind: str) -> str:
    """Bring a message about."""
    template = find_template("rubber_tile")
    if kind in NOTES:
        (note,) = rewrite(NOTES[kind], template).notes
        return note
    if kind in TEXTS:
        with pytest.raises((PromptError, RequestError)) as raised:
            rewrite(GenerationRequest(prompt=TEXTS[kind]).prompt, template)
        return str(raised.value)
    if kind in SETTINGS:
        given = table("red=50;black=50", "50% red, 50% black", [("red", "50"), ("black", "50")])
        form, _ = read_page_form(type(given)([*given.multi_items(), *SETTINGS[kind].items()]), "en")
    else:
        rows = {"wrong_table": [("", "")], "wrong_share": [("red", "x"), ("black", "50")]}[kind]
        form, _ = read_page_form(table("red=50;black=50", "50% red, 50% black", rows), "en")
    assert form.error is not None
    return form.error


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_said_in_every_language(kind):
    """They were shown in English, whatever the reader's language was."""
    message = complaint_about(kind)
    assert next(key for key, pattern in KINDS.items() if pattern.fullmatch(message)) == kind
    said = {code: explain(message, words) for code, words in load_words().items()}
    assert message not in said.values()
    assert len(set(said.values())) >= len(LANGUAGES) - 1  # Russian and Ukrainian share a short one
    assert not any(" at character " in text or "$" in text for text in said.values())


def test_numbers_and_colors_in_them_are_the_readers():
    words = load_words()
    total = complaint_about("wrong_total")
    assert explain(total, words["en"]) == (
        "The shares add up to 70.5% and not to 100%. Read: 50% red, 20.5% dark green."
    )
    assert explain(total, words["de"]).replace("\xa0", " ") == (
        "Die Anteile ergeben 70,5 % statt 100 %. Gelesen: 50 % rot, 20,5 % dunkelgrün."
    )
    color = complaint_about("wrong_color")
    assert explain(color, words["ru"]) == "Цвета «schwrz» нет в карте. Возможно, «schwarz»?"
    assert (
        explain(complaint_about("wrong_pair"), words["uk"]) == "В одній частці два кольори: чорний, червоний."
    )
    assert explain(complaint_about("wrong_limits"), words["de"]) == "Erwartet: 1 bis 20."


def test_what_is_of_no_known_kind_stays_as_it_is():
    assert explain("a message of another kind", load_words()["zh"]) == "a message of another kind"
