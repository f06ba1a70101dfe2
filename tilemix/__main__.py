"""`python -m tilemix VERB` and the command `tilemix`: the command line."""

import sys


def main() -> int:
    """Run one verb and return the exit status; Ctrl-C is one line, during the imports too."""
    try:
        from tilemix.cli import main as run_verb

        return run_verb()
    except KeyboardInterrupt:
        sys.stderr.write("tilemix: interrupted\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
