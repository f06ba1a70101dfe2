"""A sample of `tests/soak_api.py`: the API answers as its document says."""

import json
import logging

import pytest

from tests.soak_api import fuzz
from tilemix.studio import api


@pytest.mark.slow
def test_over_a_back_end_that_draws_no_answer_is_a_server_error_or_undocumented():
    statuses = fuzz(4, is_faulty=False)
    assert {200, 201, 404, 422} <= set(statuses)
    assert max(statuses) < 500


@pytest.mark.slow
def test_over_a_back_end_that_fails_the_answers_are_those_of_the_document(caplog):
    caplog.set_level(logging.CRITICAL)
    assert 500 not in fuzz(4, is_faulty=True)


@pytest.mark.slow
@pytest.mark.parametrize("status", ["404", "422"])
def test_an_answer_that_the_document_does_not_know_is_found(tmp_path, monkeypatch, status):
    """The judge is judged."""
    document = json.loads(api.OPENAPI.read_text())
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop(status, None)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    monkeypatch.setattr(api, "OPENAPI", tmp_path / "openapi.json")
    with pytest.raises(BaseExceptionGroup, match="Schemathesis found"):
        fuzz(4, is_faulty=False)
