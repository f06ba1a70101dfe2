"""`python -m tilemix VERB`: the command line."""

from tilemix.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
