"""The hashes against hashlib, zlib and blake3 used by themselves, on files of more than 10 MiB."""

import hashlib
import json
import os
import subprocess
import sys
import zlib

import blake3
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.model_files import SDXL_LORA, write_model
from tilemix.errors import ModelFileError
from tilemix.modelfile import hash_cache, hashes, memory
from tilemix.modelfile.hash_cache import find_hashes, recall_hashes
from tilemix.modelfile.hashes import BLOCK, compute_hashes
from tilemix.modelfile.inspection import read
from tilemix.modelfile.memory import memory_path

SIZES = (11 * 2**20, 12 * 2**20 + 1, 40 * BLOCK, 44 * BLOCK - 1)  # bytes of tensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    make_model(path, 11 * 2**20)
    return path


def make_model(path, size):
    numbers = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    save_file({"a": torch.from_numpy(numbers)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.slow
def test_every_hash_is_what_the_libraries_say(tmp_path, size):
    path = tmp_path / "model.safetensors"
    make_model(path, size)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    header = int.from_bytes(content[:8], "little")
    found = compute_hashes(path, every=True)
    assert found.sha256 == sha256
    assert found.autov2 == sha256[:10].upper()
    assert found.autov1 == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8].upper()
    assert found.autov3 == hashlib.sha256(content[8 + header :]).hexdigest()[:12].upper()
    assert found.blake3 == blake3.blake3(content).hexdigest()
    digits = f"{zlib.crc32(content):08X}"
    assert found.crc32 == digits[6:8] + digits[4:6] + digits[2:4] + digits[0:2]
    assert found.sha256_first_8mib == hashlib.sha256(content[: 8 * 2**20]).hexdigest()


def test_the_byte_order_of_the_crc_is_civitais(tmp_path):
    """Their scanner's own vector: "hello world" is 85114A0D there, 0D4A1185 in zlib."""
    path = tmp_path / "x"
    path.write_bytes(b"hello world")
    assert compute_hashes(path, every=True).crc32 == "85114A0D"


@pytest.mark.parametrize(
    ("size", "has_autov1"), [(0, False), (8, False), (0x100000, False), (0x10FFFF, False), (0x110000, True)]
)
def test_a_short_file_has_no_hash_of_what_it_does_not_hold(tmp_path, size, has_autov1):
    """The web UI gives e3b0c442, the hash of nothing, to every file of up to one MiB."""
    path = tmp_path / "x"
    path.write_bytes(bytes(size))
    found = compute_hashes(path, every=True)
    assert (found.autov1 is not None) == has_autov1
    assert (found.autov3 is None) == (size <= 8)
    assert found.sha256 == hashlib.sha256(bytes(size)).hexdigest()


def test_autov3_of_what_is_no_safetensors_is_of_all_but_eight_bytes(tmp_path):
    path = tmp_path / "x.ckpt"
    content = b"PK" + os.urandom(10_000)
    path.write_bytes(content[:6] + b"\xff\xff" + content[8:])
    assert compute_hashes(path, every=True).autov3 == hashlib.sha256(content[8:]).hexdigest()[:12].upper()


def test_without_a_wish_only_what_sha256_gives_is_computed(model):
    found = compute_hashes(model)
    assert found.sha256
    assert found.autov1
    assert (found.autov3, found.crc32, found.blake3) == (None, None, None)


def test_every_byte_is_reported_as_it_is_hashed(model):
    counts = []
    compute_hashes(model, on_bytes=counts.append)
    assert sum(counts) == model.stat().st_size
    assert len(counts) == -(-model.stat().st_size // BLOCK)


def test_a_file_that_changes_meanwhile_has_no_hash(model):
    with pytest.raises(ModelFileError, match="changed while it was read"):
        compute_hashes(model, on_bytes=lambda _: os.utime(model))
    with pytest.raises(ModelFileError, match=r"changed while it was read"):
        compute_hashes(model, on_bytes=lambda _: os.truncate(model, 5 * 2**20))


def test_a_fault_in_a_digest_is_not_lost(model, monkeypatch):
    def fail(self, data):
        raise MemoryError("full")

    monkeypatch.setattr(hashes._Window, "update", fail)
    with pytest.raises(MemoryError, match="full"):
        compute_hashes(model)


@pytest.fixture
def passes(monkeypatch):
    """The paths that were hashed."""
    done = []

    def compute(path, **options):
        done.append(path)
        return compute_hashes(path, **options)

    monkeypatch.setattr(hash_cache, "compute_hashes", compute)
    return done


def test_a_hash_is_computed_once(model, passes):
    first = find_hashes(model)
    assert find_hashes(model) == first == recall_hashes(model)
    assert len(passes) == 1
    complete = find_hashes(model, every=True)
    assert find_hashes(model) == complete  # the larger answer serves the smaller question
    assert find_hashes(model, every=True) == complete
    assert len(passes) == 2


def test_another_size_or_time_of_change_is_another_file(model, passes):
    find_hashes(model)
    os.utime(model, ns=(0, model.stat().st_mtime_ns + 1))
    assert recall_hashes(model) is None
    find_hashes(model)
    stamp = model.stat().st_mtime_ns
    with model.open("ab") as file:
        file.write(b"x")
    os.utime(model, ns=(stamp, stamp))
    assert recall_hashes(model) is None
    assert find_hashes(model).sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert len(passes) == 3


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + bytes(4000)])
def test_a_broken_cache_is_begun_anew_with_a_warning(model, content, caplog):
    find_hashes(model)
    memory_path().write_bytes(content)
    assert recall_hashes(model) is None
    assert "cannot be read, starting a new one" in caplog.text
    assert find_hashes(model) == recall_hashes(model)


def test_a_cache_that_cannot_be_written_costs_a_warning(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert find_hashes(model).sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    (tmp_path / "second").write_bytes(b"x")
    find_hashes(tmp_path / "second")
    assert caplog.text.count("nothing can be remembered") == 1


def test_the_cache_stands_where_xdg_says(tmp_path, monkeypatch):
    assert memory_path() == tmp_path / "cache" / "tilemix" / "files.sqlite3"
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert str(memory_path()) == "/home/somebody/.cache/tilemix/files.sqlite3"


def test_the_cache_forgets_the_oldest(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MAX_ROWS", 2)
    paths = [tmp_path / str(i) for i in range(3)]
    for path in paths:
        path.write_bytes(b"x")
        find_hashes(path)
    assert [recall_hashes(path) is not None for path in paths] == [False, True, True]


def test_several_processes_lose_nothing_of_each_others(tmp_path):
    for i in range(6):
        (tmp_path / str(i)).write_bytes(bytes([i]))
    code = "import sys; from pathlib import Path; from tilemix.modelfile.hash_cache import find_hashes; "
    code += "find_hashes(Path(sys.argv[1]))"
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path / str(i)]) for i in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    assert all(recall_hashes(tmp_path / str(i)) for i in range(6))


@pytest.mark.slow
def test_no_more_than_the_header_is_read_unless_a_hash_is_asked_for_or_missing(tmp_path):
    """The kernel counts the bytes: one process for each wish, of a file of 80 MB."""
    path = tmp_path / "big.safetensors"
    shapes = SDXL_LORA | {"lora_unet_out_2.lora_down.weight": (8, 5_000_000)}
    write_model(path, shapes, metadata={"ss_tag_frequency": "x" * 100_000})
    side = tmp_path / "big.safetensors.metadata.json"

    def count(wish):
        code = (
            "import sys; from tilemix.modelfile.inspection import read\n"
            "def taken(): return int(open('/proc/self/io').readline().split()[1])\n"
            "import tilemix.modelfile.hash_cache, json, sqlite3, blake3, concurrent.futures.thread\n"
            "before = taken(); read(sys.argv[1], hashes=sys.argv[2]); print(taken() - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, path, wish], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    side.write_text(json.dumps({"hash": "AUTOV2: 90BFFAFD10"}))
    assert count("missing") < 300_000
    side.unlink()
    assert count("none") < 300_000
    assert count("missing") > 80_000_000
    assert count("missing") < 300_000  # remembered


def test_reading_a_file_compares_its_hash(model):
    side = model.with_name("model.safetensors.metadata.json")
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    first = hashlib.sha256(model.read_bytes()[: 8 * 2**20]).hexdigest()
    tree = blake3.blake3(model.read_bytes()).hexdigest()

    def verdict(declared, wish="all"):
        side.write_text(json.dumps(declared))
        file = read(model, hashes=wish)
        return file.verified, file.mismatch

    assert verdict({"hash": sha256}, "missing") == (None, None)  # nothing computed yet
    assert verdict({"hash": f"AUTOV2: {sha256[:10].upper()}", "hash_type": "AUTOV2"}) == (True, None)
    assert verdict({"hash": sha256.upper()}) == (True, None)
    assert verdict({"hash": "0x" + sha256}, "missing") == (True, None)  # remembered meanwhile
    assert verdict({"hash": tree, "hash_type": "BLAKE3"}) == (True, None)
    assert verdict({"hash": read(model, hashes="all").hashes.crc32, "hash_type": "CRC32"}) == (True, None)
    assert verdict({"hash": sha256[:9] + "x"}) == (None, None)
    assert verdict({"hash": "0123456789"}) == (False, "other_content")
    assert verdict({"hash": tree, "hash_type": "SHA256"}) == (False, "other_content")
    assert verdict({"hash": f"AUTOV2: {first[:10].upper()}"}) == (False, "legacy_first_8mib")
    assert verdict({"hash": first, "hash_type": "SHA256"}) == (False, "legacy_first_8mib")
    assert verdict({"hash": "civitai: 2131974 @ 2411703"}) == (None, None)


def test_without_a_sidecar_the_hash_is_computed(model):
    file = read(model)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    assert (file.hash, file.hash_type, file.hash_source) == (sha256[:10].upper(), "AUTOV2", "computed")
    assert file.hashes.sha256 == sha256
    assert (file.verified, file.mismatch) == (None, None)
    assert file.hashes.blake3 is None
    assert read(model, hashes="all").hashes.blake3 is not None
