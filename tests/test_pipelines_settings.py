import pytest

from tilemix.errors import TilemixError
from tilemix.pipelines.settings import Settings, read_settings
from tilemix.pipelines.speed import Precision, Speed


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, Settings(threads=None, speed=Speed.EQUIVALENT, compiled=False)),
        ({"TILEMIX_THREADS": "", "TILEMIX_SPEED": "", "TILEMIX_COMPILE": ""}, Settings()),
        ({"TILEMIX_THREADS": "1"}, Settings(threads=1)),
        ({"TILEMIX_THREADS": "16"}, Settings(threads=16)),
        ({"TILEMIX_SPEED": "exact"}, Settings(speed=Speed.EXACT)),
        ({"TILEMIX_SPEED": "equivalent"}, Settings()),
        ({"TILEMIX_SPEED": "fast"}, Settings(speed=Speed.FAST)),
        ({"TILEMIX_PRECISION": "bf16"}, Settings(precision=Precision.BF16)),
        ({"TILEMIX_PRECISION": ""}, Settings()),
        ({"TILEMIX_COMPILE": "0"}, Settings()),
        ({"TILEMIX_COMPILE": "1"}, Settings(compiled=True)),
        ({"TILEMIX_MODEL": "other", "PATH": "/bin"}, Settings()),
    ],
)
def test_settings_are_read_from_the_environment(environment, settings):
    assert read_settings(environment) == settings


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("TILEMIX_THREADS", ["0", "-1", "two", "1.5", "٢", "1025", "9" * 5000], "an integer from 1 to 1024"),
        ("TILEMIX_PRECISION", ["float32", "BF16"], "one of bf16, fp32"),
        ("TILEMIX_SPEED", ["Exact", "fastest", " ", "1"], "one of exact, equivalent, fast"),
        ("TILEMIX_COMPILE", ["yes", "2", " ", "01"], "one of 0, 1"),
    ],
)
def test_a_value_that_is_none_of_its_kind_is_refused(name, values, rule):
    for value in values:
        with pytest.raises(TilemixError) as caught:
            read_settings({name: value})
        assert str(caught.value) == f"{name} is {value[:40]!r}; expected {rule}"
