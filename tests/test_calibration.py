"""Calibration: colors corrected, the best strength chosen, never worse than none, and resumable."""

import logging
import types
from decimal import Decimal

import msgspec
import numpy as np
import pytest
from PIL import Image

from tilemix.calibration.correction import correct_colors
from tilemix.calibration.texture import describe_texture, find_texture_distance
from tilemix.calibration.trials import CALIBRATED, NOISE, TONED, Trials, choose, draw_mixes, rate
from tilemix.cli import main
from tilemix.colors.cielab import lab_to_srgb, srgb_to_lab
from tilemix.colors.palette import Granules, load_palette
from tilemix.drafts.draft import draft_mix
from tilemix.drafts.tone import find_seen, tone
from tilemix.errors import ManifestError
from tilemix.prompts.mix import ColorMix, ColorShare, parse_mix
from tilemix.prompts.template import find_template
from tilemix.weights import load_manifest, locate_model
from tilemix.weights.calibration import Calibration, DraftColor, Figures, encode_calibration, load_calibration

CELLS = Granules("cells", diameter=19, spread=0.15)
PALETTE = msgspec.structs.replace(load_palette("rubber-tile"), granules=CELLS)
WORDS = ["red", "blue", "yellow", "pearl"]
GOOD = Figures(share_error=1, worst_share=2, color_error=2, not_asked=0, texture=1)


OWN, BARE = find_template("rubber_tile"), find_template("rubber_tile_bare")


class FakeRenderer:
    """A model that draws every color lighter and yellower than its draft, and from noise with wrong shares."""

    def __init__(self, drift=(5.0, -2.0, 4.0)):
        self.planner = types.SimpleNamespace(calibration=None, template=OWN)
        self.drift, self.drawn = np.array(drift), []
        self.ready = types.SimpleNamespace(model=types.SimpleNamespace(hashes={"unet": "0" * 64}))

    def render(self, request):
        self.drawn.append(request)
        mix = parse_mix(request.prompt).mix
        if request.strength == 1 and len(mix.shares) > 1:
            first, second, *others = mix.shares
            wrong = min(Decimal(20), second.percent - 1)
            mix = ColorMix(
                (
                    ColorShare(first.color, first.percent + wrong),
                    ColorShare(second.color, second.percent - wrong),
                    *others,
                )
            )
        draft = draft_mix(mix, PALETTE, request.width, request.height, seed=request.seed)
        if self.planner.calibration is not None:
            draft = draft.recolored(
                {word: color.draft for word, color in self.planner.calibration.colors.items()}
            )
        drift = (
            self.drift
            * (0.4 if request.lora_scale == 0.8 else 1)
            * (0.5 if self.planner.template is BARE else 1)
        )
        drifted = np.clip(lab_to_srgb(srgb_to_lab(draft.lit) + drift), 0, 255)
        pixels = np.rint(drifted).astype(np.uint8)
        if self.planner.calibration is not None and self.planner.calibration.toned:
            wanted = [PALETTE.find(share.color) for share in mix.shares]
            pixels, _ = tone(pixels, draft.layout, wanted)
        return types.SimpleNamespace(pixels=pixels)


def test_what_a_draft_shows_is_found_where_it_lies():
    draft = draft_mix(parse_mix("60% red, 40% orange").mix, PALETTE, 256, 256, seed=1)
    found = find_seen(srgb_to_lab(draft.pixels), draft.layout, 2)
    for number, word in enumerate(("red", "orange")):
        assert found[number] == pytest.approx(PALETTE.find(word).lab, abs=0.5)


def test_colors_are_moved_against_the_error_and_not_too_far():
    targets = {"red": "#B0402A", "black": "#1A1A1A"}
    lab = srgb_to_lab((0xB0, 0x40, 0x2A))
    once = correct_colors(
        targets, targets, [("red", lab + np.array((5, 0, 0))), ("red", lab + np.array((5, 0, 0)))]
    )
    assert once["black"] == targets["black"]
    moved = srgb_to_lab([int(once["red"][at : at + 2], 16) for at in (1, 3, 5)])
    assert moved - lab == pytest.approx((-4, 0, 0), abs=0.6)
    far = correct_colors(targets, targets, [("red", lab + np.array((90, 0, 0)))])["red"]
    assert np.linalg.norm(srgb_to_lab([int(far[at : at + 2], 16) for at in (1, 3, 5)]) - lab) < 26


def test_texture_tells_another_granule_size_and_blur():
    def describe(seed, diameter=19.0, blur=1):
        palette = msgspec.structs.replace(
            PALETTE, granules=msgspec.structs.replace(PALETTE.granules, diameter=diameter)
        )
        pixels = draft_mix(parse_mix("50% red, 50% white").mix, palette, 256, 256, seed=seed).pixels
        small = Image.fromarray(pixels).resize((256 // blur, 256 // blur))
        return describe_texture(np.asarray(small.resize((256, 256))))

    references = [[describe(seed), describe(seed + 1)] for seed in (0, 2, 4)]
    assert find_texture_distance([describe(seed) for seed in (10, 11, 12)], references) < 2
    assert find_texture_distance([describe(seed, 32.0) for seed in (10, 11, 12)], references) > 2
    assert find_texture_distance([describe(seed, blur=4) for seed in (10, 11, 12)], references) > 2


def test_the_best_is_chosen_among_those_whose_granules_are_right():
    replace = msgspec.structs.replace
    figures = {
        NOISE: replace(GOOD, share_error=4, texture=0),
        "a": GOOD,
        "b": replace(GOOD, share_error=0, texture=2.5),
    }
    assert choose(figures) == "a"
    assert choose(figures | {"a": replace(GOOD, share_error=4.5)}) == NOISE
    assert rate(GOOD) == 2


def test_mixes_are_seeded_and_total_100():
    mixes = draw_mixes(WORDS, 6)
    assert mixes == draw_mixes(WORDS, 6)
    assert all(sum(share.percent for share in mix.shares) == 100 for mix in mixes)
    assert {len(mix.shares) for mix in mixes} == {2, 3, 4}
    assert [str(mix) for mix in draw_mixes(["red"], 1)] == ["100% red"]


@pytest.fixture
def few(monkeypatch):
    """Fewer mixes than a real run has."""
    monkeypatch.setattr("tilemix.calibration.trials.MIXES", 4)


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_a_calibration_corrects_what_the_model_does_and_resumes(tmp_path):
    renderer = FakeRenderer()
    trials = Trials(renderer, PALETTE, WORDS, tmp_path)
    outcome = trials.run((0.5,))
    found = outcome.calibration
    assert found.strength == 0.5
    assert set(found.figures) == {NOISE, "draft at 0.5", CALIBRATED, TONED}
    before, after = found.figures["draft at 0.5"], found.figures[CALIBRATED]
    assert after.color_error < before.color_error / 2
    assert found.toned == (rate(found.figures[TONED]) < rate(after))
    assert set(found.colors) == set(WORDS)
    assert renderer.planner.calibration is None
    assert len(renderer.drawn) <= trials.count((0.5,))
    again = FakeRenderer()
    assert Trials(again, PALETTE, WORDS, tmp_path).run((0.5,)).calibration == found
    assert not again.drawn


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_a_calibration_that_is_worse_than_none_is_not_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tilemix.calibration.trials.correct_colors", lambda targets, *_: dict.fromkeys(targets, "#00FF00")
    )
    renderer = FakeRenderer(drift=(0, 0, 0))
    found = Trials(renderer, PALETTE, WORDS, tmp_path).run((0.5,)).calibration
    assert (found.strength, found.colors) == (0.5, {})
    assert rate(found.figures[CALIBRATED]) > rate(found.figures["draft at 0.5"])


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_the_last_step_is_chosen_where_the_drafts_colors_do_not_help(tmp_path, monkeypatch):
    monkeypatch.setattr("tilemix.calibration.trials.correct_colors", lambda targets, *_: targets)
    found = Trials(FakeRenderer(), PALETTE, WORDS, tmp_path).run((0.5,)).calibration
    assert found.toned
    assert found.figures[TONED].color_error < found.figures["draft at 0.5"].color_error / 2


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_the_scale_and_the_template_that_measure_best_are_found(tmp_path):
    renderer = FakeRenderer()
    trials = Trials(renderer, PALETTE, WORDS[:2], tmp_path, [BARE])
    outcome = trials.run((0.5,), (0.6, 0.8))
    found = outcome.calibration
    assert (found.strength, found.lora_scale, found.prompt_template) == (0.5, 0.8, "rubber_tile_bare")
    errors = [
        found.figures[name].color_error
        for name in ("LoRA at 0.6", "LoRA at 0.8", "template rubber_tile_bare")
    ]
    assert errors == sorted(errors, reverse=True)
    assert renderer.planner.template is OWN
    assert len(renderer.drawn) <= trials.count((0.5,), (0.6, 0.8))
    assert found.granule_width["from a draft"] == pytest.approx(PALETTE.granules.diameter, rel=0.4)
    assert msgspec.json.decode(encode_calibration(found), type=Calibration) == found


@pytest.fixture
def model(tmp_path):
    """A model's place, with a calibration beside it."""
    calibration = Calibration(
        strength=0.4,
        colors={"red": DraftColor(as_seen="#112233", draft="#223344")},
        figures={NOISE: GOOD},
        files={"unet": "0" * 64, "lora": None},
    )
    path = tmp_path / "m.calibration.json"
    path.write_bytes(encode_calibration(calibration))
    hashes = {"unet": "0" * 64, "lora": None}
    return types.SimpleNamespace(name="m", calibration=path, hashes=hashes), calibration


def test_a_calibration_is_read_back(model):
    place, calibration = model
    assert load_calibration(place) == calibration
    place.calibration.unlink()
    assert load_calibration(place) is None


@pytest.mark.parametrize("hashes", [{"unet": "1" * 64, "lora": None}, {"unet": "0" * 64}, {}])
def test_a_calibration_of_other_files_is_ignored_aloud(model, caplog, hashes):
    place, _ = model
    place.hashes = hashes
    with caplog.at_level(logging.WARNING):
        assert load_calibration(place) is None
    assert "m.calibration.json is ignored" in caplog.text


def test_a_broken_calibration_is_refused(model):
    place, _ = model
    place.calibration.write_text("{}")
    with pytest.raises(ManifestError, match=r"^m\.calibration\.json"):
        load_calibration(place)


def test_the_miniatures_calibration_is_of_its_files_and_its_palette():
    calibration = load_calibration(locate_model("miniature"))
    assert calibration is not None
    assert calibration.strength == load_manifest("miniature").defaults.strength
    for word, color in calibration.colors.items():
        assert color.as_seen == PALETTE.find(word).as_seen
    best = choose(calibration.figures)
    assert rate(calibration.figures[best]) < rate(calibration.figures[NOISE])


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["miniature", "--colors", "zebra"],
            1,
            "unknown color 'zebra'; known: beige, black, ",
        ),
        (["none"], 1, "unknown model 'none'"),
        (["miniature", "--strengths", "2"], 2, "strength 2.0 is out of range; expected 0.2 to 1"),
        (["miniature", "--strengths", "much"], 2, "strength 'much' is not a number"),
    ],
)
def test_the_verb_refuses_what_it_cannot_use(capsys, arguments, status, line):
    if status == 2:
        with pytest.raises(SystemExit) as caught:
            main(["calibrate", *arguments])
        assert caught.value.code == 2
    else:
        assert main(["calibrate", *arguments]) == status
    assert line in capsys.readouterr().err
