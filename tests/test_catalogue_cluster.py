"""Catalogues on real Ray: what is said where it cannot be used, and that what is killed costs no row."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from tests.catalogue_parts import load_stand_in
from tests.soak_catalogue import ROWS, Campaign
from tilemix.catalogue.cluster import RayEngine
from tilemix.cli import main
from tilemix.errors import TilemixError

NO_RAY = "ray is not installed: pip install -r requirements-ray.txt"


def test_without_ray_the_option_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    listing = tmp_path / "list.csv"
    listing.write_text("mix\n100% red\n100% blue\n")
    assert main(["catalogue", str(listing), str(tmp_path / "out"), "--ray"]) == 1
    line = "tilemix catalogue: --ray needs Ray, which is not installed here: pip install 'tilemix[ray]'\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.fixture
def imported(monkeypatch):
    """What is imported of Ray before it is asked to connect; it need not be installed."""
    names = ("RayActorError", "OutOfMemoryError", "WorkerCrashedError", "NodeDiedError")
    exceptions = SimpleNamespace(**dict.fromkeys(names, OSError))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=exceptions))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-host.invalid:6379", "127.0.0.1:x"]
)
@pytest.mark.usefixtures("imported")
def test_an_address_that_does_not_answer_is_refused_in_one_line(address):
    with pytest.raises(TilemixError, match=f"^Ray at '{address}' does not answer: "):
        RayEngine(load_stand_in, address=address)


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [(b"", "timed out"), (b"HTTP/1.0 400 Bad request\r\n\r\n", "something other than Ray listens there")],
)
@pytest.mark.usefixtures("imported")
def test_an_address_where_something_else_listens_is_refused_in_one_line(greeting, reason, monkeypatch):
    monkeypatch.setattr("tilemix.catalogue.greeting.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answered = pool.submit(lambda: server.accept()[0])
        answered.add_done_callback(lambda done: done.result().sendall(greeting))
        with pytest.raises(TilemixError, match=f"^Ray at '{address}' does not answer: {reason}$"):
            RayEngine(load_stand_in, address=address)
        answered.result().close()


@pytest.mark.parametrize("count", ["0", "-3", "many", "10001"])
def test_a_number_of_workers_that_cannot_be_is_refused(count, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["catalogue", "list.csv", str(tmp_path / "out"), "--ray", f"--actors={count}"])
    assert f"argument --actors: '{count}' is not a number from 1 to 10000" in capsys.readouterr().err


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A sample of `python -m tests.soak_catalogue`; Ray runs in processes of its own, which it ends when it fails."""
    pytest.importorskip("ray", reason=NO_RAY)
    return Campaign(tmp_path_factory.mktemp("campaign"), model="stand-in", prompts=ROWS[:6])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["actor", "driver", "raylet"])
def test_after_a_kill_every_row_is_there_once_with_the_bytes_of_a_run_without_ray(campaign, kind):
    found = campaign.run_session(kind, actor_kills=1)
    assert (found.kills, found.lost, found.doubled) == (1, 0, 0), found.said
