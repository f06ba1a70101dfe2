"""The API against its own document: requests that schemathesis draws from it, right ones and wrong ones.

    python -m tests.soak_api [--examples 300]

Every operation is called with data that fit the document and with data that do not: first over a Cog server's
stand-in that draws, where no answer may be a server error, and there also in sequences that follow the document's
links: ask, look, cancel, get the picture; then over one that fails in every way in turn, where 502 and 503 are the
right answers. Every answer must have a status, a media type, headers and a body that the document describes.
"""

import argparse
import collections
import contextlib
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.cog_stand_in import CogStandIn, run_cog_stand_in
from tests.studio_parts import data_uri, picture
from tilemix.studio import api
from tilemix.studio.app import create_app
from tilemix.studio.limits import RateLimit
from tilemix.studio.service import Studio
from tilemix.studio.settings import Secret, Settings

BASE = "http://127.0.0.1:8000"
STEPS = 12  # of a sequence
DRAWS = {"status": "succeeded", "output": data_uri(picture())}
FAULTS = (
    {"outcome": {"status": "failed", "error": "out of memory"}},
    {"outcome": {"status": "succeeded", "output": "data:image/png;base64,AAAA"}},
    {"outcome": {"status": "succeeded"}},
    {"outcome": {"status": "canceled"}},
    {"outcome": {"nonsense": None}},
    {"refusal": {"detail": "1536 is too wide"}},
    {"health": "UNHEALTHY"},
    {"hangs_up": True},
    {},
)
WELL = {"outcome": DRAWS, "refusal": None, "health": None, "hangs_up": False}


class NoLimit(RateLimit):
    """Takes everything."""

    def take(self, address: str) -> bool:
        return True


def fuzz(examples: int, *, is_faulty: bool) -> collections.Counter[int]:
    """Call every operation so often with right and with wrong data; return how often each status was answered.

    Raises an ExceptionGroup with what schemathesis found.
    """
    statuses: collections.Counter[int] = collections.Counter()
    # The grammar of color mixes, and that a text has no control characters, is not in the document.
    excluded = [positive_data_acceptance, *([not_a_server_error] if is_faulty else [])]
    few = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with run_studio() as (app, cog):
        turns = itertools.cycle(FAULTS if is_faulty else [{}])
        schema = schemathesis.openapi.from_dict(json.loads(api.OPENAPI.read_text()))
        schema.app = app

        def judge(response: schemathesis.Response, case: schemathesis.Case) -> None:
            statuses[response.status_code] += 1
            assert response.status_code != 500, response.text
            case.validate_response(response, excluded_checks=excluded)

        def call(case: schemathesis.Case) -> None:
            if case.method == "POST":
                vars(cog).update(WELL | next(turns))
            judge(case.call(base_url=BASE), case)

        for mode, found in itertools.product(GenerationMode, schema.get_all_operations()):
            strategy = found.ok().as_strategy(generation_mode=mode)
            with contextlib.suppress(
                Unsatisfiable
            ):  # no text is a wrong id, no request without inputs is wrong
                few(given(case=strategy)(call))()
        if is_faulty:  # what a request is answered depends on the turn, which Hypothesis takes for flaky
            return statuses

        class Sequences(schema.as_state_machine()):
            def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, str]:
                return {"base_url": BASE}

            def validate_response(self, response, case, *_, **named) -> None:
                judge(response, case)

        run_state_machine_as_test(Sequences, settings=few)
    return statuses


@contextlib.contextmanager
def run_studio() -> Iterator[tuple[Callable, CogStandIn]]:
    """Run a studio over a stand-in; it waits for nothing longer than it must."""
    with (
        tempfile.TemporaryDirectory() as name,
        run_cog_stand_in() as cog,
        mock.patch.object(api, "POLL_SECONDS", 0.02),
        mock.patch.object(api, "GRACE", 0.0),
        Studio(
            Settings(
                folder=Path(name),
                database_url=Secret(f"sqlite:///{name}/studio.sqlite3"),
                cog_url=cog.url,
                deadline_seconds=10,
                port=9,
            )
        ) as studio,
    ):
        yield create_app(studio, rate_limit=NoLimit()), cog


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold the API against its document.")
    parser.add_argument(
        "--examples", type=int, default=300, help="of each operation, right and wrong, and sequences"
    )
    options = parser.parse_args()
    logging.disable()  # of the back end's faults, which are meant
    for is_faulty in (False, True):
        statuses = fuzz(options.examples, is_faulty=is_faulty)
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        over = "a back end that fails" if is_faulty else "a back end that draws"
        sys.stdout.write(f"over {over}: {statuses.total()} requests, all as the document says: {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
