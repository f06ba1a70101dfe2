"""The type of what every module here adds its verbs to."""

from __future__ import annotations

import argparse

Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  argparse has no public name for it
