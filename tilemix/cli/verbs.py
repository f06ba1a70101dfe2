"""The type of the parser group to which each module adds its verbs."""

from __future__ import annotations

import argparse

Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  argparse has no public name for it
