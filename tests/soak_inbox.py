"""The inbox against its model for long: `python -m tests.soak_inbox [--examples 500]`."""

import argparse
import sys

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.test_studio_inbox_machine import InboxMachine


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold the inbox against its model for long.")
    parser.add_argument("--examples", type=int, default=500, help="runs of 50 steps each")
    options = parser.parse_args()
    run_state_machine_as_test(
        InboxMachine,
        settings=settings(
            max_examples=options.examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    sys.stdout.write(f"{options.examples} runs, no difference from the model\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
