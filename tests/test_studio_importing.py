import json

import pytest

from tests.test_catalogue_run import Catalogue
from tilemix.errors import SettingsError, StudioError
from tilemix.studio.__main__ import main
from tilemix.studio.gallery import Gallery
from tilemix.studio.importing import import_catalogue
from tilemix.studio.settings import Secret, Settings
from tilemix.studio.store.database import Database
from tilemix.studio.store.locks import lock_file


@pytest.fixture
def settings(tmp_path):
    folder = tmp_path / "studio"
    return Settings(folder=folder, database_url=Secret(f"sqlite:///{folder / 'studio.sqlite3'}"))


@pytest.fixture
def catalogue(tmp_path):
    catalogue = Catalogue(tmp_path)
    catalogue.run()
    return catalogue


def find_all(settings):
    database = Database.open(settings.database_url)
    try:
        return {
            found["id"]: found
            for found in Gallery(database, settings.folder / "pictures").find_page(limit=100)
        }
    finally:
        database.close()


def test_a_catalogues_pictures_are_in_the_gallery_once_with_mix_seed_and_shares(catalogue, settings):
    assert import_catalogue(catalogue.out, settings) == (3, 1, 0)  # two rows ask for the same picture
    assert import_catalogue(catalogue.out, settings) == (0, 4, 0)
    found = find_all(settings)
    done = {row["id"]: row for row in catalogue.results if row["status"] == "done"}
    assert set(found) == set(done)
    for identity, row in done.items():
        shown = found[identity]
        assert shown["status"] == "succeeded"
        assert shown["is_done"]
        assert shown["mix"] == row["asked"]
        assert shown["input"]["seed"] == row["seed"]
        assert shown["prompt"] == row["prompt"]
        assert shown["metrics"]["predict_time"] == row["seconds"]
        picture = settings.folder / "pictures" / f"{identity}.png"
        assert picture.read_bytes() == (catalogue.out / row["path"]).read_bytes()
    first = catalogue.results[0]
    assert found[first["id"]]["metrics"]["share_red"] == round(first["measured"]["red"], 1)


def test_a_changed_or_missing_file_and_a_path_that_leads_elsewhere_are_refused(catalogue, settings, tmp_path):
    catalogue.file(1).write_bytes(b"changed")
    catalogue.file(2).unlink()
    (tmp_path / "secret.png").write_bytes(catalogue.file(4).read_bytes())
    lines = (catalogue.out / "results.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"path": "../secret.png"})
    (catalogue.out / "results.jsonl").write_text("\n".join(lines))
    assert import_catalogue(catalogue.out, settings) == (0, 0, 4)
    assert find_all(settings) == {}


def test_what_is_no_catalogue_and_a_studio_that_runs_are_refused_in_one_line(
    tmp_path, settings, monkeypatch, capsys
):
    with pytest.raises(StudioError, match="not a finished catalogue: No such file or directory$"):
        import_catalogue(tmp_path, settings)
    (tmp_path / "results.jsonl").write_text("{")
    monkeypatch.setenv("TILEMIX_STUDIO_FOLDER", str(settings.folder))
    assert main(["--import", str(tmp_path)]) == 1
    assert "not a finished catalogue: " in capsys.readouterr().err
    lock = lock_file(settings.folder / "lock", "the studio")
    with pytest.raises(SettingsError, match="in use by another studio$"):
        import_catalogue(tmp_path, settings)
    lock.close()
