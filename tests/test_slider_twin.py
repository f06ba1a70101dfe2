"""The rules of the sliders, whatever is done with them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slider_twin import PERCENT, WHOLE, Sliders, apportion

COLORS = ("red", "black", "pearl", "blue", "green", "sand", "white")
colors = st.sampled_from(COLORS)
actions = st.one_of(
    st.tuples(st.just("move"), colors, st.integers(-50, 1100)),
    st.tuples(st.just("move"), colors, st.integers(0, 100).map(lambda percent: percent * PERCENT)),
    *(st.tuples(st.just(name), colors) for name in ("toggle_lock", "toggle_rest", "add", "remove")),
)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(0, 1000), st.sampled_from([1, 10])
)
def test_parts_are_within_one_unit_of_their_quota_and_total_exactly(weights, total, unit):
    total -= total % unit
    parts = apportion(weights, total, unit)
    assert sum(parts) == total
    whole = sum(weights)
    for weight, part in zip(weights, parts, strict=True):
        quota = total * weight / whole if whole else total / len(weights)
        assert abs(part - quota) < unit
        assert part % unit == 0


@settings(deadline=None)
@given(st.lists(actions, max_size=30))
def test_the_total_is_100_percent_and_locked_shares_stay(steps):
    sliders = Sliders({"red": 50, "black": 30, "pearl": 20})
    for name, color, *more in steps:
        known = color in sliders.values()
        if known is (name == "add") or (name == "remove" and not sliders.can_remove(color)):
            continue
        locked = {s.color: s.tenths for s in sliders.shares if s.is_locked and s.color != color}
        if name == "move" and sliders.get(color).is_locked:
            continue  # such a slider cannot be moved
        getattr(sliders, name)(color, *more)
        values = sliders.values()
        assert sum(values.values()) == WHOLE
        assert all(0 <= value <= WHOLE for value in values.values())
        assert locked.items() <= values.items()
