"""Peer N's cold start: a process that gets ready to draw and reports when. It imports nothing of tilemix.

python -m bench.cold_naive BASE LORA SCALE
"""

import json
import sys
import time
from pathlib import Path

from bench.peers import PeerFiles, load_naive, quiet


def main() -> None:
    """Load, then print the monotonic clock as JSON."""
    quiet()
    base, lora, scale = sys.argv[1:]
    peer = load_naive(PeerFiles(Path(base), Path(lora), float(scale)))
    assert peer.pipe is not None
    sys.stdout.write(json.dumps({"ready_at": time.monotonic()}) + "\n")


if __name__ == "__main__":
    main()
