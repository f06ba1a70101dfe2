"""Which parameters of a test the quick loop runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

Parameter = type(pytest.param())


def first_quick(parameters: Iterable[Any]) -> list[Any]:
    """Return a test's parameters, all but the first of them marked as slow."""
    first, *others = (one if isinstance(one, Parameter) else pytest.param(one) for one in parameters)
    slow = [pytest.param(*one.values, id=one.id, marks=[*one.marks, pytest.mark.slow]) for one in others]
    return [first, *slow]
