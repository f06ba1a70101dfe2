"""What customers write, in nine languages: each wording is read as it was meant, or refused.

`wordings.tsv` holds the wordings with their right answers, written from what the customer means: a mix, "!" for a
refusal, "-" for text without a mix. "⏎" is a new line, "⇥" a tab.
"""

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pace import assert_quick, processor_seconds
from tilemix.colors.languages import load_languages
from tilemix.errors import MixError, PromptError
from tilemix.prompts.checks import MAX_PROMPT_CHARACTERS
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.mix.totals import TENTH, make_mix

TABLE = Path(__file__).parent / "wordings.tsv"
WORDINGS = [tuple(line.split("\t")) for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
REFUSED, TEXT = "!", "-"

# Fault -> typed -> the mix, "!" or "-".
KINDS = {
    "shade": {
        "50% grey light, 50% grey dark": "50% light gray, 50% dark gray",
        "светлый серый 60%, тёмный серый 40%": "60% light gray, 40% dark gray",
        "50% grau hell, 50% grau dunkel": "50% light gray, 50% dark gray",
        "50% green (dark), 50% green (light)": "50% dark green, 50% light green",
        "50% blue dark, 50% red": "50% dark blue, 50% red",
        "50% orange dark, 50% red": "!",
        "50% naranja oscuro, 50% rojo": "!",
        "50% lt gray, 50% dk. gray": "50% light gray, 50% dark gray",
        "50% h. grau, 50% d.grau": "50% light gray, 50% dark gray",
        "50% св. серый, 50% т. серый": "50% light gray, 50% dark gray",
        "50% св.сірий, 50% темн. сірий": "50% light gray, 50% dark gray",
    },
    "one color": {
        "all black": "100% black",
        "pure black tile": "100% black",
        "solid black": "100% black",
        "entirely dark green": "100% dark green",
        "60% pure black, 40% solid red": "60% black, 40% red",
        "komplett schwarz": "100% black",
        "rein schwarze Platte": "100% black",
        "einfarbig rot": "100% red",
        "полностью чёрная": "100% black",
        "вся плитка красная": "100% red",
        "повністю чорна": "100% black",
        "суцільно": "-",
        "全黑": "100% black",
        "纯黑色": "100% black",
        "完全是红色": "100% red",
        "cały czarny": "100% black",
        "entièrement noir": "100% black",
        "todo negro": "100% black",
        "tutta rossa": "100% red",
    },
    "joined names": {
        "red-black": "50% red, 50% black",
        "schwarz-rot": "50% black, 50% red",
        "schwarz-rot-weiß": "34% black, 33% red, 33% white",
        "чёрно-красная плитка": "50% black, 50% red",
        "сине-жёлтая плитка": "50% blue, 50% yellow",
        "жовто-блакитний": "50% yellow, 50% light blue",
        "czarno-czerwony": "50% black, 50% red",
        "noir-blanc": "50% black, 50% white",
        "red-black 60/40": "60% red, 40% black",
        "rot-braun": "100% brown",
        "бело-зелёный": "100% white-green",
        "gelb-grün": "100% bright green",
        "blue-green": "-",
        "сине-зелёный": "-",
        "grau-blau": "-",
        "50% сине-зелёный, 50% чёрный": "!",
        "50% red-black, 50% white": "!",
    },
    "half and half": {
        "fifty-fifty red and black": "50% red, 50% black",
        "a fifty-fifty mix of red and black": "50% red, 50% black",
        "rot und schwarz fünfzig-fünfzig": "50% red, 50% black",
        "пятьдесят на пятьдесят чёрный и красный": "50% black, 50% red",
        "по половине чёрного и красного": "50% black, 50% red",
        "по третині чорного, червоного та білого": "33.4% black, 33.3% red, 33.3% white",
        "п'ятдесят на п'ятдесят чорний і червоний": "50% black, 50% red",
        "黑红五五开": "50% black, 50% red",
        "rojo y negro mitad y mitad": "50% red, 50% black",
    },
    "one amount for a list": {
        "60%黑色，其余红蓝各半": "60% black, 20% red, 20% blue",
        "黑色60%，红白各20%": "60% black, 20% red, 20% white",
        "六成黑，红蓝各两成": "60% black, 20% red, 20% blue",
        "红黑白各三分之一": "33.4% red, 33.3% black, 33.3% white",
        "60% black, the rest red and blue equally": "60% black, 20% red, 20% blue",
        "60% schwarz, Rest rot und blau zu gleichen Teilen": "60% black, 20% red, 20% blue",
        "60% чёрный, остальное красный и синий поровну": "60% black, 20% red, 20% blue",
        "60% чорний, решта червоний та синій порівну": "60% black, 20% red, 20% blue",
        "60% red, black and white 20% each": "60% red, 20% black, 20% white",
    },
    "background": {
        "20% red flecks on a black background": "20% red, 80% black",
        "20% rote Sprenkel auf schwarzem Hintergrund": "20% red, 80% black",
        "20% красных точек на чёрном фоне": "20% red, 80% black",
        "20% червоних крапок на чорному фоні": "20% red, 80% black",
        "20%红色颗粒，黑色背景": "20% red, 80% black",
        "red, black, white background": "-",
    },
    "no amount, or none that counts": {
        "60% red, a little black, 40% white": "!",
        "60% rot, etwas schwarz, 40% weiß": "!",
        "60% красного, немного чёрного, 40% белого": "!",
        "60%红色，少量黑色，40%白色": "!",
        "60% red, 40% blue, 20% gold": "!",
        "60% rot, 40% blau, 5% echtes Gold": "!",
        "60% красный, 40% синий, 20% золотой": "!",
        "60% червоний, 40% синій, 20% золотий": "!",
        "60%红色，40%蓝色，20%金色": "!",
    },
    "denied": {
        "60% not red, 40% black": "!",
        "60% nicht rot, 40% schwarz": "!",
        "60% не красный, 40% чёрный": "!",
        "60% не червоний, 40% чорний": "!",
        "60%不红，40%黑": "!",
        "60% not RAL 9005, 40% red": "!",
        "no 60% red, 40% black": "!",
        "60 not red 40 black": "!",
        "not red 60%, black 40%": "!",
        "60% red, 40% black, no black": "!",
        "60% red not black shiny 40%": "!",
        "not red": "-",
        "no flecks": "-",
        "red, no black": "100% red",
        "gray, not black": "100% gray",
        "plain black, no flecks": "100% black",
        "red and blue but not black": "50% red, 50% blue",
        "rot und blau ohne schwarz": "50% red, 50% blue",
        "серый, а не чёрный": "100% gray",
        "чёрная плитка без вкраплений": "100% black",
        "червоний і синій, тільки не чорний": "50% red, 50% blue",
        "红色和蓝色，不要黑色": "50% red, 50% blue",
    },
    "half a name": {
        "50% warm gray, 50% cool gray": "!",
        "50% warm gray, 50% black": "!",
        "cool gray 50%, black 50%": "!",
        "50% gray (bluish), 50% black": "!",
        "50% green olive dull, 50% green": "!",
        "60% lighter shade of blue, 40% black": "!",
        "60% ein Hauch von Blau, 40% schwarz": "!",
        "60% оттенок синего, 40% чёрный": "!",
        "60% army green, 40% jungle green": "!",
        "50% petrol green, 50% black": "!",
        "60 ocean blue 40 black": "!",
        "warm gray, black 3:1": "!",
        "black with 20% cherry red flecks": "!",
        "50% kühles Grau, 50% warmes Grau": "!",
        "50% rot, 50% grünliches Blau": "!",
        "50% холодный серый, 50% тёплый серый": "!",
        "50% серый тёплый, 50% чёрный": "!",
        "50% зеленуватий сірий, 50% чорний": "!",
        "60%玫瑰红，40%桃红": "!",
        "暖灰50%，黑色50%": "!",
        "50% gris chaud, 50% gris froid": "!",
        "50% gris verdoso, 50% negro": "!",
        "50% ciepły szary, 50% czarny": "!",
        "50% grigio caldo, 50% nero": "!",
    },
    "accent": {
        "schwarz mit 20% roten Sprenkeln und 80% grauen Sprenkeln": "20% red, 80% gray",
        "black with 60% red spots and 40% white spots": "60% red, 40% white",
        "чёрный с 50% красных точек и 50% белых точек": "50% red, 50% white",
        "nero con 60% di puntini rossi e 40% di puntini bianchi": "60% red, 40% white",
        "black with 60% red squiggles and 40% white squiggles": "60% red, 40% white",
    },
    "base": {
        "black with 20% red flecks": "80% black, 20% red",
        "黑色加10%红色颗粒": "90% black, 10% red",
        "чёрная с 20% красных вкраплений": "80% black, 20% red",
        "20% red fleck on black": "20% red, 80% black",
        "Black / 10% blue speckle": "90% black, 10% blue",
        "black tile 20% red": "80% black, 20% red",
        "чёрная плитка (20% красного)": "80% black, 20% red",
        "黑色地砖20%红色": "80% black, 20% red",
        "黑色为主，20%红色": "80% black, 20% red",
        "20%红点黑底": "20% red, 80% black",
        "schwarz, 20% rot gesprenkelt": "80% black, 20% red",
        "чёрный с добавлением 20% красного": "80% black, 20% red",
        "I'd like black with 20% red": "80% black, 20% red",
    },
    "RAL beside a word": {
        "70% Schwarz / 20% Grau RAL 7037 / 10% Blau": "70% black, 20% dark gray, 10% blue",
        "Blau RAL 5015": "100% sky blue",
        "earth brown (RAL 8024)": "100% brown",
        "50% синий RAL 3016, 50% чёрный": "!",
        "50% verde (RAL 5017), 50% negro": "!",
    },
    "brackets": {
        "20% rgb(255,0,0), 80% black": "20% bright red, 80% black",
        "серый (светлый) 50%, чёрный 50%": "50% light gray, 50% black",
        "50% [red], 50% (black)": "50% red, 50% black",
        "50% ((((red)))), 50% ((((black))))": "50% red, 50% black",
    },
    "screen colors": {"#ff0000": "100% bright red", "#0000ff": "100% blue", "rgb(0, 128, 0)": "100% green"},
    "minus and ranges": {
        "-5% red, 95% black": "!",
        "50% red, -50% black": "!",
        "between 10 and 20 % red, rest black": "!",
        "zwischen 10 und 20 % rot, Rest schwarz": "!",
        "10~20%红色，其余黑色": "!",
    },
    "parts and ratios": {
        "3 parts red, 1 part black": "75% red, 25% black",
        "3 Teile rot, 1 Teil schwarz": "75% red, 25% black",
        "3份红色1份黑色": "75% red, 25% black",
        "3:1 red:black": "75% red, 25% black",
        "50/50 black and green": "50% black, 50% green",
        "rot/schwarz 60/40": "60% red, 40% black",
        "15 kg red, 5 kg black": "75% red, 25% black",
        "3 parts red, 20% black": "!",
    },
    "fractions and number words": {
        "1/3 red 2/3 black": "33.3% red, 66.7% black",
        "33 1/3 % red, 66 2/3 % black": "33.3% red, 66.7% black",
        "12½% red, 87½% black": "12.5% red, 87.5% black",
        "fifty percent red, fifty percent black": "50% red, 50% black",
        "百分之七十黑色，百分之三十红色": "70% black, 30% red",
        "siebenundzwanzig Prozent rot, Rest schwarz": "27% red, 73% black",
    },
    "equal and each": {
        "equal parts red, black and grey": "34% red, 33% black, 33% gray",
        "zu gleichen Teilen rot und schwarz": "50% red, 50% black",
        "красный и чёрный поровну": "50% red, 50% black",
        "红黑各50%": "50% red, 50% black",
        "50% each of red and black": "50% red, 50% black",
        "je 50% rot und schwarz": "50% red, 50% black",
        "60% red, the rest equally black and white": "60% red, 20% black, 20% white",
    },
    "rest": {
        "20% red, balance black": "20% red, 80% black",
        "20% red, everything else black": "20% red, 80% black",
        "20% rouge, tout le reste noir": "20% red, 80% black",
        "20% rot, ansonsten schwarz": "20% red, 80% black",
        "red 20% rest black": "20% red, 80% black",
        "rot 20% Rest dunkelgrün": "20% red, 80% dark green",
        "красный 20% остальное чёрный": "20% red, 80% black",
        "червоний 20% решта чорний": "20% red, 80% black",
        "红色20%其余黑色": "20% red, 80% black",
        "mit 20% rot, auf 80% schwarz": "20% red, 80% black",
    },
    "no sign": {
        "60 blue 40 black": "60% blue, 40% black",
        "red=50 black=50": "50% red, 50% black",
        "0.5 red 0.5 black": "50% red, 50% black",
        "100 red": "100% red",
        "34 red": "-",
        "50 red 20 black": "!",
        "2 tins 60 blue 40 black": "!",
    },
    "tables": {
        "red\t50\nblack\t30\npearl\t20": "50% red, 30% black, 20% pearl",
        "Red;50\nBlack;50": "50% red, 50% black",
        "rot,50%\nschwarz,50%": "50% red, 50% black",
        "красный|50\nчёрный|50": "50% red, 50% black",
    },
    "percents of something else": {
        "80% black / 20% red, UV stable 100%": "80% black, 20% red",
        "100% recycled rubber; 80% black / 20% red": "80% black, 20% red",
        "100% Recycling; 80% schwarz, 20% rot": "80% black, 20% red",
        "80% black, 20% red = 100%": "80% black, 20% red",
    },
    "JSON": {
        '{"colors": [{"name": "red", "proportion": 60}, {"name": "white", "proportion": 40}]}': "60% red, 40% white",
        '[{"color": "black", "percentage": 30}, {"color": "red", "percentage": 70}]': "30% black, 70% red",
        '{"colors": [{"name": "red", "proportion": 0.6}, {"name": "white", "proportion": 0.4}]}': "60% red, 40% white",
        '{"colors": [{"name": "red", "proportion": 60}]}': "!",
        '{"colors": "red"}': "-",
    },
    "trade codes": {
        "50% DKGREEN, 30% GRNAPL, 20% LTGRAY": "50% dark green, 30% green apple, 20% light gray",
        "BLACKp15_WHITEp85": "15% black, 85% white",
        "60% grsgrn 40% yellow": "60% grass green, 40% yellow",
        "REDp50_BLUEp50": "50% red, 50% blue",
    },
    "underscores": {"50% invalid_color": "!", "red: 50, black: 50": "50% red, 50% black"},
    "the thing": {
        "100% blue rubber tile": "100% blue",
        "красная резиновая плитка": "100% red",
        "зелёная трава 50%, чёрный 50%": "50% green, 50% black",
        "rote Gummifliese": "100% red",
        "dalle en caoutchouc rouge": "100% red",
    },
    "everyday words": {
        "ca. 60% rot, ca. 40% schwarz": "60% red, 40% black",
        "тёмный серый": "100% dark gray",
        "verkehrsgrau": "100% gray",
        "50% бордо, 50% песок": "50% wine red, 50% sand",
        "tan": "100% sand",
        "off-white": "100% pearl",
        "brick": "100% red",
        "royal blue": "100% blue",
        "schiefergrau": "100% anthracite",
        "rotbraun": "100% brown",
        "50% czerwony, 50% bordo": "50% red, 50% wine red",
    },
}
# Typed -> the whole text that is sent.
KEPT = {
    "2平方米60%黑色40%红色": "2平方米60% black, 40% red",
    "60%黑色40%红色，厚50毫米": "60% black, 40% red, 厚50毫米",
    "5米 60%米色 40%米白": "5米 60% beige, 40% pearl",
    "60% rot, 40% schwarz vor grauem Hintergrund": "60% red, 40% black, vor grauem Hintergrund",
    "60% red, 40% black, white background": "60% red, 40% black, white background",
    "60% красный, 40% чёрный, белый фон": "60% red, 40% black, белый фон",
    "60% rot, 40% schwarz auf weißem Hintergrund": "60% red, 40% black, auf weißem Hintergrund",
    "60% red, 40% blue, 90% recycled rubber": "60% red, 40% blue, 90% recycled rubber",
    "60% red, 40% blue, UV stable 100%": "60% red, 40% blue, UV stable 100%",
    "60% red, 40% blue, no black": "60% red, 40% blue",
    "60% red, 40% blue, but no light gray or white flecks, wet": "60% red, 40% blue, wet",
    "60% red, no black, 40% blue, very wet": "60% red, 40% blue, very wet",
    "60% red, 40% blue, no white border, wet": "60% red, 40% blue, wet",
    "60% red, 40% blue, no rubber smell": "60% red, 40% blue, no rubber smell",
    "60% red, 40% blue, no shadows": "60% red, 40% blue, no shadows",
    "60% rot, 40% blau ohne schwarze Sprenkel, nass": "60% red, 40% blue, nass",
    "keine weißen Flecken, 60% rot, 40% blau": "60% red, 40% blue",
    "красный 60%, синий 40% без чёрного": "60% red, 40% blue",
    "фото, без чорного та білого, 60% червоний, 40% синій": "фото, 60% red, 40% blue",
    "60%红色，40%蓝色，不要黑色": "60% red, 40% blue",
    "60% czerwony, 40% niebieski, nie czarny": "60% red, 40% blue",
    "60% rouge, 40% bleu, sans noir": "60% red, 40% blue",
    "60% rojo, 40% azul, sin RAL 9005": "60% red, 40% blue",
    "60% rosso, 40% blu, senza nero": "60% red, 40% blue",
}


def answer(typed: str) -> str:
    try:
        mix = parse_mix(typed).mix
    except MixError:
        return REFUSED
    return str(mix) if mix else TEXT


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        pytest.param(typed, right, id=f"{kind}: {typed}")
        for kind, row in KINDS.items()
        for typed, right in row.items()
    ],
)
def test_every_kind_of_wording_is_read_or_refused(typed, right):
    assert answer(typed) == right
    if (
        right not in {REFUSED, TEXT}
        and "squiggles" not in typed
        and "100%" not in typed.replace("= 100%", "100%")
    ):
        assert parse_mix(typed).text == right  # no word is left over


@pytest.mark.parametrize(("typed", "sent"), KEPT.items())
def test_words_that_are_not_of_the_mix_are_kept(typed, sent):
    assert parse_mix(typed).text == sent


@pytest.mark.parametrize(("language", "typed", "right"), WORDINGS)
def test_a_wording_means_what_the_table_says(language, typed, right):
    assert answer(typed.replace("⏎", "\n").replace("⇥", "\t")) == right


def test_the_table_holds_three_hundred_wordings_thirty_a_language():
    counts = Counter(language for language, _, _ in WORDINGS)
    assert len({typed for _, typed, _ in WORDINGS}) >= 300
    assert all(counts[language] >= 30 for language in load_languages())


@pytest.mark.parametrize(
    ("typed", "code", "named"),
    [
        ("50% orange dark, 50% red", "mix-no-shade", "dark"),
        ("50% red, -50% black", "mix-minus", "-50%"),
        ("between 10 and 20 % red, rest black", "mix-range", "10 and 20 %"),
        ("3:1 red, black, white", "mix-ratio", "3:1"),
        ("3 parts red, 20% black", "mix-units", "3 parts"),
        ("black 20% red", "mix-no-percent", "red"),
        ("20, 5% red, rest black", "mix-leftover", "20"),
        ("60/40 black red and 70/30 blue white", "mix-leftover", "60/40"),
        ("room 60 black, room 40 red", "mix-leftover", "room 60"),
        ("schwarz mit mindestens 20% rot", "mix-limit", "mindestens 20%"),
        ("1.500 кг красного, 1 кг чёрного", "mix-unclear-number", "1.500 кг"),
        ("50% warm gray, 50% black", "mix-half-known", "warm gray"),
        ("50% rеd, 50% black", "mix-foreign-letter", "rеd"),
        ("60% blасk, 40% red", "mix-foreign-letter", "blасk"),
        ("60% чeрный, 40% белый", "mix-foreign-letter", "чeрный"),
        ("60% cepый, 40% белый", "mix-foreign-letter", "cepый"),
        ("60% not  red, 40% black", "mix-denied", "not red"),
        ("no 60% red, 40% black", "mix-denied", "no 60%"),
        ("50% red, 25% army green, 25% green", "mix-half-known", "army green"),
        ("50% red, 25% green (old army), 25% green", "mix-half-known", "green (old army"),
    ],
)
def test_a_refusal_quotes_what_was_typed(typed, code, named):
    with pytest.raises(MixError) as caught:
        parse_mix(typed)
    assert (caught.value.code, caught.value.values["typed"]) == (code, named)
    assert " ".join(typed[caught.value.position - 1 :].split()).startswith(named)


@pytest.mark.parametrize("language", sorted(load_languages()))
def test_words_of_the_surface_leave_a_color_as_it_is_and_tints_do_not(language):
    words = load_languages()[language]
    red, black = words.colors["red"][0], words.colors["black"][0]
    for look in words.looks:
        parsed = parse_mix(f"60% {look} {red}, 40% {black} {look}")
        assert (str(parsed.mix), parsed.tail.count(look)) == ("60% red, 40% black", 2)
    for tint in words.tints:
        for typed in (
            f"60% {tint} {red}, 40% {black}",
            f"60% {red}, 40% {black} {tint}",
            f"{tint} {red} 60%, {black} 40%",
        ):
            with pytest.raises(MixError, match="not on the chart"):
                parse_mix(typed)


@given(
    st.text("bcdfghjklmnpqrstvwxz", min_size=6, max_size=9),
    st.sampled_from(["gray", "grau", "серый", "灰色"]),
)
@settings(max_examples=60, deadline=None)
def test_a_word_that_nobody_knows_does_not_vanish_from_a_color(word, gray):
    for typed in (
        f"60% {word} {gray}, 40% red", f"red 60%, {word} {gray} 40%", f"60% {gray} {word}, 40% {gray}",
        f"red with 20% {word} {gray} flecks", f"20% red on {word} {gray}", f"{gray} {word} and {gray}, 3:1",
    ):  # fmt: skip
        with pytest.raises(MixError):
            parse_mix(typed)


def test_a_base_that_gets_nothing_and_keys_without_meaning_are_said():
    (note,) = parse_mix("black with 60% red spots and 40% white spots").notes
    assert (note.code, note.values["color"]) == ("mix-base-gets-nothing", "black")
    (note,) = parse_mix("60% red, 40% blue, no black, wet").notes
    assert (note.code, note.values) == ("mix-denied-left-out", {"typed": "no black", "position": 20})
    (note,) = parse_mix('{"colors": [{"name": "red", "proportion": 100, "size": 3}], "seed": 1}').notes
    assert (note.code, note.values["keys"]) == ("mix-keys-ignored", "seed, size")


@pytest.mark.parametrize(
    "typed",
    [
        "a red tile on a black floor, 8k, f/1.8, 35mm",
        "a red tile and two black ones",
        "shot at 10:30, black tile, red light",
        "tile size 50 x 50 cm, colors red and black",
        "3/4 view of a red and black tile",
        "two-tone red and black",
        "две красные плитки и одна чёрная",
        "плитка 50 на 50 см, красный и чёрный",
        "红黑地砖，4毫米厚",
    ],
)
def test_numbers_of_something_else_leave_a_text_as_it_is(typed):
    assert answer(typed) == TEXT


def test_the_headings_of_a_table_and_its_sum_are_dropped():
    assert parse_mix("Farbe;Anteil\r\nrot;60\r\nschwarz;40\r\nGesamt;100").text == "60% red, 40% black"
    assert parse_mix("my share of words\n60% red, 40% black").text == "my share of words 60% red, 40% black"


def test_a_number_behind_the_mix_is_kept():
    assert parse_mix("60% red, 40% black, 16:9").text == "60% red, 40% black, 16:9"
    assert parse_mix("2 tiles, 60% red, 40% black, 40 x 40 x 3 cm").tail == ", 40 x 40 x 3 cm"
    assert parse_mix("60% red, 3 tiles, 40% black").text == "60% red, 40% black, 3 tiles"


COLORS = ["red", "black", "pearl", "white", "dark green", "light gray"]


@st.composite
def amounts_and_colors(draw):
    names = draw(st.lists(st.sampled_from(COLORS), min_size=2, max_size=5, unique=True))
    weights = draw(st.lists(st.integers(1, 40), min_size=len(names), max_size=len(names)))
    return list(zip(weights, names, strict=True))


@given(amounts_and_colors())
@settings(max_examples=150, deadline=None)
def test_parts_weights_and_ratios_are_the_same_mix(rows):
    mix = parse_mix(", ".join(f"{amount} parts {name}" for amount, name in rows)).mix
    assert sum(share.percent for share in mix.shares) == 100
    assert parse_mix(" + ".join(f"{amount} kg {name}" for amount, name in rows)).mix == mix
    ratio = ":".join(str(amount) for amount, _ in rows)
    assert parse_mix(f"{', '.join(name for _, name in rows)} {ratio}").mix == mix
    total = sum(amount for amount, _ in rows)
    for share, (amount, name) in zip(mix.shares, rows, strict=True):
        assert share.color == name
        assert abs(float(share.percent) - 100 * amount / total) <= 1


@given(amounts_and_colors(), st.sampled_from(["％", "%", " %"]), st.sampled_from(["", "(", "((["]))
@settings(max_examples=150, deadline=None)
def test_case_width_commas_order_and_brackets_do_not_change_a_mix(rows, sign, opening):
    total = sum(amount for amount, _ in rows)
    shares = [(round(100 * amount / total, 1), name) for amount, name in rows]
    closing = opening.translate(str.maketrans("([", ")]"))[::-1]
    plain = parse_mix(", ".join(f"{share}% {name}" for share, name in shares)).mix
    wide = str.maketrans("0123456789", "０１２３４５６７８９")
    typed = "; ".join(
        f"{str(share).replace('.', ',').translate(wide)}{sign} {opening}{name.upper()}{closing}"
        for share, name in shares
    )
    assert parse_mix(typed).mix == plain
    turned = parse_mix("\n".join(f"{name}: {share}%" for share, name in shares)).mix
    assert turned == plain
    backward = parse_mix(", ".join(f"{share}% {name}" for share, name in reversed(shares))).mix
    assert {share.color for share in backward.shares} == {share.color for share in plain.shares}
    assert parse_mix(str(plain)).mix == plain


@given(
    amounts_and_colors(),
    st.sampled_from(["7", "1/2", "thirty", "12,5", "二", "20%", "3 to", "½", "7:3"]),
    st.sampled_from([" ", " - ", "–", "...", "±", "～", " or ", ", ", " / ", " to ", " x ", " (", " ca. "]),
    st.integers(0, 4),
)
@settings(max_examples=300, deadline=None)
def test_a_number_in_front_of_an_amount_never_changes_the_mix_in_silence(rows, number, joint, place):
    total = sum(amount for amount, _ in rows)
    shares = [f"{round(100 * amount / total, 1)}% {name}" for amount, name in rows]
    shares[place % len(shares)] = f"{number}{joint}{shares[place % len(shares)]}"
    assert answer("; ".join(shares)) == REFUSED


@given(
    amounts_and_colors(),
    st.sampled_from(["2-3 parts", "some parts", "parts", "a few", "3 handfuls", "?", "fifty thousand", "x"]),
    st.integers(0, 4),
)
@settings(max_examples=100, deadline=None)
def test_parts_never_lose_a_color(rows, amount, place):
    """A color whose amount is not understood is refused, whatever stands there."""
    shares = [f"{amount} parts {name}" for amount, name in rows]
    shares[place % len(shares)] = f"{amount} {rows[place % len(rows)][1]}"
    assert answer(", ".join(shares)) == REFUSED


@given(st.lists(st.decimals(0, 10**7, places=3), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_a_mix_totals_100_or_is_none(amounts):
    rows = [(f"color {number}", amount) for number, amount in enumerate(amounts)]
    if any(amounts):
        assert sum(share.percent for share in make_mix(rows, TENTH).shares) == 100
        with pytest.raises(ValueError, match="make no mix"):
            make_mix([*rows, ("red", Decimal(-1))], TENTH)
    else:
        with pytest.raises(ValueError, match="make no mix"):
            make_mix(rows, TENTH)


@given(
    st.text(max_size=60) | st.lists(st.sampled_from([w for _, w, _ in WORDINGS]), max_size=3).map(" ".join)
)
@settings(max_examples=300, deadline=None)
def test_every_visible_character_has_a_role(text):
    try:
        parsed = parse_mix(text)
    except PromptError:
        return
    end = 0
    for span in parsed.spans:
        assert end <= span.start <= span.end
        assert not any(letter.isprintable() and not letter.isspace() for letter in text[end : span.start])
        assert span.role
        end = span.end
    assert not any(letter.isprintable() and not letter.isspace() for letter in text[end:])


@pytest.mark.parametrize(
    "typed",
    [
        "50% (",
        "red-black_",
        "3:1 ",
        "1/3 red ",
        "half ",
        '[{"a":',
        "je 5% rot ",
        "百分之",
        "light ",
        "1 ",
        "六成半红",
        "#aa3f27, ",
        "rest red ",
    ],
)
@pytest.mark.slow
def test_the_longest_text_takes_less_than_twenty_milliseconds(typed):
    text = (typed * MAX_PROMPT_CHARACTERS)[:MAX_PROMPT_CHARACTERS]

    def read() -> None:
        answer(text)

    read()  # the index of misspellings is made once
    assert_quick(lambda: min(processor_seconds(read) for _ in range(3)), 0.02)


@pytest.mark.parametrize(
    ("typed", "roles"),
    [
        (
            '{"colors": [{"name": "rot", "proportion": 60}, {"name": "WHITE", "proportion": "40%"}], "seed": 4}',
            [("color", "rot", "red"), ("share", "60", "60"), ("color", "WHITE", "white"), ("share", "40%", "40"),
             ("ignored", "seed", ""), ("ignored", "4", "")],
        ),
        (
            '{"красный": 60, "negro": 40}',
            [("color", "красный", "red"), ("share", "60", "60"), ("color", "negro", "black"), ("share", "40", "40")],
        ),
        (
            '[{"percentage": 0.3, "color": "bl\\u0061ck", "note": {"colors": [1]}}, {"hex": "#fff", "share": 0.7}]',
            [("share", "0.3", "0.3"), ("color", "bl\\u0061ck", "black"), ("ignored", "note", ""), ("ignored", "1", ""),
             ("color", "#fff", "white"), ("share", "0.7", "0.7")],
        ),
        (
            '{"prompt": "50% red, half schwarz, wet", "steps": 30}',
            [("share", "50%", "50"), ("color", "red", "red"), ("separator", ",", ""), ("share", "half", "50"),
             ("color", "schwarz", "black"), ("text", ", wet", ""), ("ignored", "steps", ""), ("ignored", "30", "")],
        ),
    ],
)  # fmt: skip
def test_every_part_of_a_mix_in_json_has_a_role(typed, roles):
    spans = parse_mix(typed).spans
    told = [(span.role, typed[span.start : span.end].strip('"'), span.value) for span in spans]
    assert [span for span in told if span[0] != "record"] == roles
    assert "".join(typed[span.start : span.end] for span in spans).replace(" ", "") == typed.replace(" ", "")


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("50% red, 50% rad", "50% red"),
        ("30% rot, 20% weiß, 50% schwrz", "30% red, 20% white"),
        ("30% красный, 20-30% чёрный", "30% red"),
        ("30% czerwony, 70%", "30% red"),
        ("50% rouge, 50% noir (RAL 3016)", "50% red"),
        ("红色50%，RAL 9999 50%", "50% red"),
        ("50% rad, 50% red", None),
        ("black 20% red", None),
        ("50% white, black 20% red", "50% white"),
        ("20-30% red, 20% black", None),
    ],
)
def test_a_refusal_says_what_was_understood_before_the_fault(typed, understood):
    with pytest.raises(MixError) as error:
        parse_mix(typed)
    assert error.value.values.get("understood") == understood
    assert str(error.value).endswith(f"; understood so far: {understood}") == (understood is not None)


@pytest.mark.parametrize(
    "typed", ["rot-schwarz, je zur Hälfte", "rot-schwarz 50/50", "half-red, half-black", "red_black 50:50"]
)
def test_a_hyphen_between_two_words_has_a_role(typed):
    """It had none: the page's marks left a hole."""
    spans = parse_mix(typed).spans
    assert len(spans) > 2
    assert "".join(typed[span.start : span.end] for span in spans).replace(" ", "") == typed.replace(" ", "")
