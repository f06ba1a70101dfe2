import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.pace import assert_quick, processor_seconds
from tests.tiny_sdxl import COMPONENTS, build_pipeline
from tilemix.adapters.lora_file import read_lora
from tilemix.adapters.names import find_weights, spell_modules
from tilemix.errors import AdapterError, ModelFileError
from tilemix.modelfile.training_archive import is_archive, open_training

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
LORA = save({f"{QUERY}.down.weight": torch.zeros(4, 32), f"{QUERY}.up.weight": torch.zeros(32, 4)})
EMBEDDINGS = save({"text_encoders_0": torch.zeros(2, 32), "text_encoders_1": torch.zeros(2, 48)})
NAMES = b'{"TOK": "<s0><s1>"}'
COMPLETE = {"lora.safetensors": LORA, "embeddings.pti": EMBEDDINGS, "special_params.json": NAMES}


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def read():
    components = {name: getattr(build_pipeline(), name) for name in COMPONENTS}
    weights, names = find_weights(components), spell_modules(components)
    return lambda path: read_lora(path, weights, names)


@pytest.fixture(autouse=True)
def no_folders_left(tmp_path, monkeypatch):
    """The archive is unpacked into a folder that goes again, refused or not."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("prefix", ["", "./"])
def test_the_archive_of_a_training_gives_the_lora_the_rows_and_the_names(read, tmp_path, prefix):
    members = [member(prefix + name, content, mtime=1.5) for name, content in COMPLETE.items()]
    if prefix:
        members.insert(0, member(".", type=tarfile.DIRTYPE))
    path = write(tmp_path / "any.name", members)  # the content decides, not the name
    lora = read(path)
    assert lora.name == "any.name"
    assert [".".join(key) for key in lora.deltas] == [
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    ]
    assert lora.embedding.tokens == ("<s0>", "<s1>")
    assert lora.embedding.rows["text_encoder_2"].shape == (2, 48)


def test_an_archive_with_a_lora_alone_is_complete(read, tmp_path):
    lora = read(write(tmp_path / "t.tar", [member("lora.safetensors", LORA)]))
    assert lora.embedding is None


KNOWN = "lora.safetensors, embeddings.pti, special_params.json"
REFUSED = {
    "traversal": (
        [member("../../lora.safetensors", LORA)],
        f"'../../lora.safetensors' in the archive, expected {KNOWN}",
    ),
    "absolute": (
        [member("/etc/lora.safetensors", LORA)],
        f"'/etc/lora.safetensors' in the archive, expected {KNOWN}",
    ),
    "folder": (
        [member("output/lora.safetensors", LORA)],
        f"'output/lora.safetensors' in the archive, expected {KNOWN}",
    ),
    "stranger": (
        [member("lora.safetensors", LORA), member("run.sh", b"#!/bin/sh")],
        f"'run.sh' in the archive, expected {KNOWN}",
    ),
    "symbolic link": (
        [member("lora.safetensors", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "'lora.safetensors' in the archive is not a plain file",
    ),
    "hard link": (
        [member("lora.safetensors", type=tarfile.LNKTYPE, linkname="../x")],
        "'lora.safetensors' in the archive is not a plain file",
    ),
    "device": (
        [member("lora.safetensors", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
        "'lora.safetensors' in the archive is not a plain file",
    ),
    "pipe": (
        [member("lora.safetensors", type=tarfile.FIFOTYPE)],
        "'lora.safetensors' in the archive is not a plain file",
    ),
    "twice": (
        [member("lora.safetensors", LORA), member("./lora.safetensors", LORA)],
        "'lora.safetensors' is in the archive twice",
    ),
    "no LoRA": ([member("embeddings.pti", EMBEDDINGS)], "no lora.safetensors in the archive"),
    "whole UNet": (
        [member("unet.safetensors", LORA)],
        "holds a whole trained UNet (unet.safetensors), not a LoRA",
    ),
    "large names": (
        [member("special_params.json", b" " * (2**16 + 1))],
        "'special_params.json' has 65537 bytes, expected at most 65536",
    ),
    "many folders": (
        [member(".", type=tarfile.DIRTYPE) for _ in range(20)],
        "more than 16 members in the archive",
    ),
    "sparse": (
        # A few bytes that say that they are 4 TiB.
        [member("lora.safetensors", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.minor": "1",
         "GNU.sparse.size": str(2**42), "GNU.sparse.map": f"0,0,{2**42},0", "GNU.sparse.name": "lora.safetensors"})],
        "'lora.safetensors' in the archive is not a plain file",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_an_archive_that_is_no_trainings_is_refused_by_its_fault(tmp_path, case):
    members, message = REFUSED[case]
    path = write(tmp_path / "t.tar", members)
    assert is_archive(path)

    def refuse() -> None:
        with pytest.raises(AdapterError) as caught, open_training(path):
            pass
        assert str(caught.value) == f"t.tar: {message}"

    assert_quick(lambda: processor_seconds(refuse), 0.2)
    assert not (tmp_path.parent / "lora.safetensors").exists()


@pytest.mark.parametrize("keep", [600, 1024, 3000])
def test_a_truncated_archive_is_refused(tmp_path, keep):
    path = write(tmp_path / "t.tar", [member(name, content * 3) for name, content in COMPLETE.items()])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AdapterError, match="^t.tar: (truncated|broken archive|no lora)"), open_training(path):
        pass


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path):
    """A pax header may be as long as it says; the library would read it whole, with the file behind it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 3 * 2**30
    path = tmp_path / "t.tar"
    path.write_bytes(info.tobuf())
    os.truncate(path, 3 * 2**30 + 2048)  # a sparse file: no disk is used
    code = (
        "import resource, sys; from pathlib import Path; from tilemix.modelfile.training_archive import open_training\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: open_training(Path(sys.argv[1])).__enter__()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert printed[0] == "AdapterError t.tar: broken archive: a header of 3221225472 bytes"
    assert int(printed[1]) < 50_000  # KiB


def test_names_that_are_no_tokens_or_too_few_are_refused(read, tmp_path):
    for content, message in (
        (b'{"TOK": "TOK"}', "special_params.json: names the tokens 'TOK', expected such as '<s0><s1>'"),
        (b'{"TOK": "<s0>"}', "embeddings.pti: 2 rows, but special_params.json names 1 tokens"),
        (b"[]", "special_params.json: Expected `object`, got `array`"),
    ):
        members = COMPLETE | {"special_params.json": content}
        path = write(tmp_path / "t.tar", [member(name, data) for name, data in members.items()])
        with pytest.raises(AdapterError) as caught:
            read(path)
        assert str(caught.value) == message


def test_an_archive_in_the_archive_is_not_opened(read, tmp_path):
    inner = write(tmp_path / "inner.tar", [member("lora.safetensors", LORA)])
    path = write(tmp_path / "t.tar", [member("lora.safetensors", inner.read_bytes())])
    with pytest.raises(ModelFileError, match="^lora.safetensors: a tar archive, expected safetensors$"):
        read(path)


def test_two_kinds_of_embeddings_in_one_archive_are_refused(read, tmp_path):
    bundled = {"bundle_emb.tile.clip_l": torch.zeros(1, 32), "bundle_emb.tile.clip_g": torch.zeros(1, 48)}
    both = save(load(LORA) | bundled)
    path = write(tmp_path / "t.tar", [member("lora.safetensors", both), member("embeddings.pti", EMBEDDINGS)])
    with pytest.raises(
        AdapterError, match="^t.tar: has embeddings of its own, and others bundled with the LoRA$"
    ):
        read(path)


def test_a_disk_that_is_full_is_said(tmp_path):
    path = write(tmp_path / "t.tar", [member("lora.safetensors", bytes(2**20))])
    code = (
        "import signal, sys; from pathlib import Path; from tilemix.modelfile.training_archive import open_training\n"
        "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "try: open_training(Path(sys.argv[1])).__enter__()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert printed.stdout == "AdapterError t.tar: cannot be unpacked: File too large\n"


def test_a_folder_and_a_missing_file_are_no_archives(tmp_path):
    assert not is_archive(tmp_path)
    assert not is_archive(tmp_path / "nowhere")
    assert not is_archive(Path(__file__))
