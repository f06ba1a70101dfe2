"""A PostgreSQL server of the tests' own: started on a private socket, gone with its folder after them."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/lib/postgresql/15/bin")
START_SECONDS = 30
SETTINGS = ("listen_addresses=", "max_connections=100", "shared_buffers=32MB")


def find_programs() -> Path | None:
    """Return the folder of initdb and postgres: on PATH, or where Debian's package puts them."""
    found = shutil.which("initdb")
    for folder in [Path(found).resolve().parent] if found else [DEBIAN]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@contextlib.contextmanager
def run_server(programs: Path, *, fsync: bool = False) -> Iterator[str]:
    """Start a server; give its URL, in which `{name}` stands for a database's name.

    Without fsync, because the tests kill the studio and not the machine: what the server has, the kernel has.
    """
    # Short: a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    as_user = user_options()
    if as_user:
        shutil.chown(folder, as_user["user"])
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, **as_user}
    try:
        initdb = [programs / "initdb", "--no-sync", "--auth=trust", "--username=studio", "--encoding=UTF8"]
        subprocess.run([*initdb, "--locale=C", "-D", data], check=True, **quiet)
        chosen = (*SETTINGS, f"fsync={'on' if fsync else 'off'}")
        settings = [part for setting in chosen for part in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, *settings], stderr=log, **quiet
            )
        try:
            deadline = time.monotonic() + START_SECONDS
            ready = [programs / "pg_isready", "-q", "-h", folder, "-U", "studio", "-d", "postgres"]
            while subprocess.run(ready, check=False).returncode != 0:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.05)
            yield f"postgresql://studio@/{{name}}?host={folder}"
        finally:
            server.terminate()
            server.wait(START_SECONDS)
    finally:
        shutil.rmtree(folder)


def user_options() -> dict[str, Any]:
    """Return how subprocess starts a program as who the server runs as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
