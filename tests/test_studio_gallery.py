"""What is found by text, and a picture whose file is gone."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cog_stand_in import run_cog_stand_in
from tests.studio_parts import add_pictures, add_prediction
from tests.test_studio_api import MIX, run, wait_for
from tilemix.colors.palette import load_palette
from tilemix.errors import RefusalError, RequestError
from tilemix.studio.gallery import SEARCHES, Gallery
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import Database
from tilemix.studio.store.schema import Share

CLIENTS = 8


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("wet", True),
        ("WET", True),
        ("et asph", True),
        ("окрый", True),
        ("we", True),
        ("ый", True),
        ('"wet" OR', False),
        ("100%", True),
        ("100_", False),
        ("dry", False),
        ("*", False),
        ('a"b', True),
        ('"b', True),
        ("b", True),
        ("р", True),
        ("*b", False),
        ("€", False),
    ],
)
@pytest.mark.slow
def test_a_text_is_found_anywhere_in_any_case(database, tmp_path, text, is_found):
    identity = add_prediction(database, prompt='100% red, Wet asphalt, Мокрый, a"b', sent_prompt="x")
    add_prediction(database, prompt="else", sent_prompt="x")
    found = [each["id"] for each in Gallery(database, tmp_path).find_page(limit=10, text=text)]
    assert found == ([identity] if is_found else [])


@pytest.mark.parametrize(
    ("text", "is_found"), [("ЫЙ", True), ("Ой", False), ("SS", True), ("ß", True), ("_", False)]
)
def test_two_letters_are_found_in_any_case_on_sqlite(tmp_path, text, is_found):
    """PostgreSQL knows the case of its locale's letters, and the tests' server has C."""
    database = Database.open(Secret(f"sqlite:///{tmp_path / 'studio.sqlite3'}"))
    add_prediction(database, prompt="50% red", sent_prompt="Мокрый, STRASSE, Weiß")
    assert bool(Gallery(database, tmp_path).find_page(limit=10, text=text)) == is_found
    database.close()


def test_the_gallery_goes_from_the_largest_error_to_the_smallest_page_by_page(database, tmp_path):
    errors = [3.0, None, 9.5, 3.0, 0.0]
    made = [add_prediction(database, prompt="wet", share_error=error) for error in errors]
    wanted = [made[number] for number in (2, 3, 0, 4)]
    gallery = Gallery(database, tmp_path)
    for text in (None, "wet"):
        found, before = [], None
        while page := gallery.find_page(limit=1, before=before, text=text, order="error"):
            found.append(before := page[0]["id"])
        assert found == wanted
    assert gallery.find_page(limit=5, before="0" * 32, order="error") == []


def test_a_color_that_the_palette_has_no_longer_is_still_found_where_it_was_drawn(database, tmp_path):
    gallery, palette = Gallery(database, tmp_path), load_palette("rubber-tile")
    words = {"bright green": "lime green", "red": "red", "RED": "red"}
    assert {typed: gallery.find_color(typed, palette) for typed in words} == words
    share = Share(place=0, color="bright green", percent=100)  # as an older palette called it
    drawn = add_prediction(database, shares=[share])
    assert gallery.find_color("bright green", palette) == "bright green"
    assert [each["id"] for each in gallery.find_page(limit=9, color="bright green")] == [drawn]
    assert gallery.find_color("wine red", None) == "wine red", "a model without a palette has the chart's"
    with pytest.raises(RequestError, match="^unknown color 'blurple'; the nearest: ") as caught:
        gallery.find_color("blurple", None)
    assert caught.value.field == "color"


def test_searches_take_turns_in_the_order_they_came_and_wait_not_for_ever(database, tmp_path, monkeypatch):
    """Threads that waited for a lock overtook one another: one search in a hundred took three times as long as most."""
    gallery = Gallery(database, tmp_path)
    most = SEARCHES[database.engine.dialect.name]
    running, order, counts = set(), [], []
    gate = threading.Event()

    def find_page(number) -> int:
        running.add(number)
        order.append(number)
        counts.append(len(running))
        gate.wait(10)
        running.discard(number)
        return number

    monkeypatch.setattr(gallery, "find_page", find_page)

    async def search_all() -> None:
        searches = [asyncio.create_task(gallery.search(number=number)) for number in range(most + 5)]
        await asyncio.sleep(0.1)
        assert len(running) == most
        with monkeypatch.context() as patch:
            patch.setattr("tilemix.studio.gallery.TURN_SECONDS", 0.01)
            with pytest.raises(RefusalError) as raised:
                await gallery.search(number=-1)
        assert (raised.value.message.code, raised.value.status) == ("studio-too-many-searches", 503)
        gate.set()
        assert await asyncio.gather(*searches) == list(range(most + 5))
        assert await gallery.search(number=99) == 99

    asyncio.run(search_all())
    assert max(counts) == most
    assert -1 not in order
    assert sorted(order[:most]) == list(range(most))  # threads that start at once may do so in any order
    if most == 1:
        assert order == [*range(most + 5), 99]


def measure_searches(database, folder, each) -> list[float]:
    """The seconds of searches by several clients at the same time, sorted."""
    gallery = Gallery(database, folder)
    texts = ("orchid", "lot 4242", "RUBBER tile", "nothing like this", "0% red")

    def search(number) -> float:
        began = time.perf_counter()
        gallery.find_page(limit=24, text=texts[number % len(texts)], has_picture=True)
        return time.perf_counter() - began

    with ThreadPoolExecutor(CLIENTS) as clients:
        return sorted(clients.map(search, range(CLIENTS * each)))


@pytest.mark.slow
def test_a_search_reads_the_index_and_not_every_text(database, tmp_path):
    """With 10,000 pictures p99 was 606 ms for 8 clients: every text was lowered in Python."""
    add_pictures(database, 3000)
    is_sqlite = database.engine.dialect.name == "sqlite"
    with database.read() as session:
        connection = session.connection()
        if is_sqlite:
            asked = (
                "EXPLAIN QUERY PLAN SELECT number FROM predictions JOIN predictions_text"
                " ON number = predictions_text.rowid WHERE predictions_text MATCH 'orchid'"
                " ORDER BY predictions_text.rowid DESC"
            )
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            asked = "EXPLAIN SELECT 1 FROM predictions WHERE prompt ILIKE '%%orchid%%'"
        statements = " ".join(str(row) for row in connection.exec_driver_sql(asked))
    assert ("VIRTUAL TABLE INDEX" if is_sqlite else "predictions_text") in statements
    assert "TEMP B-TREE" not in statements
    found = Gallery(database, tmp_path).find_page(limit=24, text="orchid", has_picture=True)
    assert len(found) == 24
    assert measure_searches(database, tmp_path, each=2)


def test_a_picture_whose_file_is_gone_says_so_and_can_be_deleted(tmp_path):
    """There was a broken image under "Done", with all its buttons."""
    with run_cog_stand_in() as cog, run(tmp_path, cog) as client:
        gone, kept = (client.post("/api/predictions", json={"prompt": MIX}).json()["id"] for _ in range(2))
        for identity in (gone, kept):
            wait_for(client, identity)
            refused = client.post(f"/results/{identity}/delete", follow_redirects=False)
            assert refused.status_code == 409
        (client.studio.pictures / f"{gone}.png").unlink()
        found = client.get(f"/api/predictions/{gone}").json()
        assert (found["url"], found["is_done"], found["error"]["code"]) == (
            None,
            True,
            "studio-picture-removed",
        )
        assert client.get(f"/files/{gone}").status_code == 410
        page = client.get(f"/results/{gone}", headers={"Accept": "text/html"}).text
        assert "The picture's file has been removed" in page.replace("&#39;", "'")
        assert "data-picture" not in page
        gallery = client.get("/gallery", headers={"Accept": "text/html"}).text
        assert f"/thumbnails/{gone}" not in gallery
        assert f"/thumbnails/{kept}" in gallery
        answer = client.post(f"/results/{gone}/delete", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/gallery")
        assert client.get(f"/api/predictions/{gone}").status_code == 404
        assert client.get(f"/api/predictions/{kept}").json()["url"] == f"/files/{kept}"
