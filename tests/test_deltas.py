"""The list of families: one owner for each part, and no overlap between what is loaded and what is refused."""

from collections import Counter

import pytest

from tests.adapter_formats import LORA_FORMATS
from tilemix.deltas import ALPHA, FAMILIES, SUFFIXES, find_rank, find_width
from tilemix.modelfile.spellings import COMPONENTS, PREFIXES, find_component, split_name


def test_a_part_and_a_suffix_belong_to_one_family():
    parts = Counter(part for family in FAMILIES for part in set(family.suffixes.values()))
    suffixes = Counter(suffix for family in FAMILIES for suffix in family.suffixes)
    assert {name for name, count in (parts + suffixes).items() if count > 2} == set()
    assert set(parts.values()) == set(suffixes.values()) == {1}
    assert set(SUFFIXES) == {*suffixes, ALPHA}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_a_family_loads_it_does_not_refuse(family):
    whole = set().union(*family.complete)
    assert whole <= set(family.suffixes.values())
    assert not whole & family.refused.keys()
    assert family.refused.keys() <= set(family.suffixes.values())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_split_off_any_spelling(suffix):
    family, part = SUFFIXES[suffix]
    for prefix in PREFIXES:
        module = prefix.spell("blocks.0.proj_in")
        found = split_name(f"{module}.{suffix}")
        assert (found.module, found.family, found.part) == (module, family, part)
        assert find_component(module) == prefix.component
    assert {prefix.component for prefix in PREFIXES if prefix.blocks != "none"} == set(COMPONENTS)


@pytest.mark.parametrize(
    ("shapes", "width", "rank"),
    [
        ({"down": (4, 2048), "up": (640, 4)}, 2048, 4),
        ({"down": (4, 320, 3, 3)}, 320, 4),
        ({"hada_w1_a": (640, 8), "hada_w1_b": (8, 2048)}, 2048, 8),
        ({"hada_w2_b": (8, 2048)}, 2048, 8),
        ({"lokr_w1": (16, 32), "lokr_w2": (40, 64)}, 2048, None),
        ({"lokr_w1_a": (16, 4), "lokr_w1_b": (4, 32), "lokr_w2_b": (4, 64)}, 2048, 4),
        ({"lokr_w1": (16, 32)}, None, None),
        ({"diff": (640, 2048)}, 2048, None),
        ({"alpha": (), "up": (640, 4)}, None, None),
        ({"down": (), "hada_w1_b": (3,)}, None, 3),
    ],
)
def test_the_shapes_of_the_parts_tell_width_and_rank(shapes, width, rank):
    assert (find_width(shapes), find_rank(shapes)) == (width, rank)


def test_every_refused_part_is_named_by_a_format_of_the_list():
    """So that each family that cannot be loaded has a test of its refusal."""
    names = {name for family in FAMILIES for name in family.refused.values()}
    told = {
        form.message.split(": ")[1].split(" is not supported")[0] for form in LORA_FORMATS if form.message
    }
    assert {name for name in names if not name.startswith("Tucker")} <= told
