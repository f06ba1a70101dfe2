"""`tilemix inspect`, as people and as programs call it."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model_files import SDXL_LORA, write_model
from tests.test_modelfile_civitai import NOT_FOUND, Site, version
from tilemix.cli import inspect, main
from tilemix.modelfile import civitai
from tilemix.system.project import ROOT

METADATA = {
    "ss_output_name": "tile",
    "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
    "ss_network_dim": "8",
    "ss_network_alpha": "4",
    "ss_vae_name": "None",
    "ss_tag_frequency": '{"10_tile": {"rubber": 7, "granules": 9}}',
    "ss_dataset_dirs": '{"10_tile": {"n_repeats": 10, "img_count": 12}}',
    "modelspec.title": "Rubber tile",
    "modelspec.thumbnail": "data:image/png;base64,AAAA",
    "ssmd_cover_images": "AAAA",
}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tile.safetensors", SDXL_LORA, metadata=METADATA)


@pytest.fixture
def folder(tmp_path, model):
    write_model(tmp_path / "tokens.pti", {"clip_l": (2, 768), "clip_g": (2, 1280)})
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04" + bytes(60))
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / ".hidden.safetensors").write_text("")
    (tmp_path / "more").mkdir()
    write_model(
        tmp_path / "more" / "vae.safetensors", {"encoder.conv_in.weight": (128, 3, 3, 3)}, dtype="F32"
    )
    return tmp_path


def test_a_file_is_told_in_lines(model, capsys):
    assert main(["inspect", str(model)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = dict(line.split(": ", 1) for line in captured.out.splitlines())
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    assert lines == {
        "file": str(model),
        "size": f"{model.stat().st_size / 1000:.1f} kB",
        "kind": "lora",
        "format": "LoRA (kohya, original blocks)",
        "name": "Rubber tile",
        "base model": "SDXL (cross-attention 2048 wide)",
        "rank": "8",
        "alpha": "4",
        "modules": "unet 2 attention",
        "dtype": "F16",
        "parameters": "31,746 in 6 tensors",
        "hash": f"{sha256[:10].upper()} (AUTOV2, computed)",
        "SHA256": sha256,
        "AutoV2": sha256[:10].upper(),
        "trigger words": "tile",
        "trained on": "sd_xl_base_1.0.safetensors",
        "pictures": "12",
        "tags": "granules 9, rubber 7",
        "modelspec.title": "Rubber tile",
        "ss_output_name": "tile",
        "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
        "ss_network_dim": "8",
        "ss_network_alpha": "4",
    }


def test_as_json_everything_is_there(model, capsys):
    assert main(["inspect", "--json", "--all-hashes", str(model)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["base_model"], answer["rank"], answer["alpha"]) == ("lora", "SDXL", 8, 4.0)
    assert set(answer["hashes"]) == {
        "sha256", "autov1", "autov2", "autov3", "crc32", "blake3", "sha256_first_8mib"
    }  # fmt: skip
    assert answer["hashes"]["blake3"]
    assert answer["metadata"]["ss_tag_frequency"] == {"10_tile": {"rubber": 7, "granules": 9}}
    assert not {"ssmd_cover_images", "modelspec.thumbnail"} & set(answer["metadata"])
    assert answer["modelspec"] == {"title": "Rubber tile"}
    assert answer["verified"] is None


def test_without_hashes_there_is_none(model, capsys):
    assert main(["inspect", "--json", "--no-hash", str(model)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["hash"], answer["hash_type"], set(answer["hashes"].values())) == (None, None, {None})


def test_a_folder_is_a_table_and_what_is_refused_says_why(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "kind", "base", "rank", "dtype", "size", "hash", "verified"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert list(rows) == [
        "old.ckpt",
        "page.safetensors",
        "tile.safetensors",
        "tokens.pti",
        "more/vae.safetensors",
    ]
    assert "refused: old.ckpt: a zip archive (probably a pickled checkpoint)" in rows["old.ckpt"]
    assert "refused: page.safetensors: an HTML page" in rows["page.safetensors"]
    size = f"{(folder / 'tile.safetensors').stat().st_size / 1000:.1f}"
    digits = hashlib.sha256((folder / "tile.safetensors").read_bytes()).hexdigest()[:10].upper()
    assert rows["tile.safetensors"].split()[1:] == [
        "lora",
        "SDXL",
        "8",
        "F16",
        size,
        "kB",
        digits,
        "computed",
    ]
    assert rows["more/vae.safetensors"].split()[1:5] == ["vae", "?", "-", "F32"]


@pytest.mark.parametrize(
    ("sidecar", "base"),
    [
        ({"sd version": "SD1"}, "SDXL (declared SD1)"),
        ({"sd version": "Unknown"}, "SDXL"),
        ({"sd version": "SDXL"}, "SDXL"),
        ({"base_model": "SDXL 1.0"}, "SDXL"),
        ({"base_model": "Pony"}, "SDXL (declared Pony)"),
    ],
)
def test_the_shapes_tell_the_base_and_what_is_declared_stands_apart(folder, sidecar, base, capsys):
    """The table believed the sidecar."""
    (folder / "tile.json").write_text(json.dumps(sidecar))
    assert main(["inspect", "--no-hash", str(folder)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tile.safetensors"))
    assert re.fullmatch(rf"tile\.safetensors +lora +{re.escape(base)} +8 .*", row)


def test_a_name_that_is_not_utf_8_is_one_line(folder, capsysbinary):
    """The whole table was lost to a traceback."""
    whole, broken = (Path(os.fsdecode(os.fsencode(folder) + name)) for name in (b"/\xff.pt", b"/\xfe.pt"))
    whole.write_bytes((folder / "tile.safetensors").read_bytes())
    broken.write_bytes(b"<!DOCTYPE html>")
    assert main(["inspect", str(folder)]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert len(lines) == 8
    assert sum(" lora " in line for line in lines) == 2
    assert sum("an HTML page" in line for line in lines) == 2
    assert main(["inspect", "--json", str(whole)]) == 0
    assert json.loads(capsysbinary.readouterr().out)["kind"] == "lora"
    assert main(["inspect", str(broken)]) == 1


def test_a_folder_as_json_is_a_list(folder, capsys):
    assert main(["inspect", "--json", "--no-hash", str(folder)]) == 0
    answer = {os.path.basename(item["path"]): item for item in json.loads(capsys.readouterr().out)}  # noqa: PTH119  a text, not a path of this system
    assert answer["page.safetensors"]["error"]["message"].startswith("page.safetensors: an HTML page")
    assert answer["tokens.pti"]["tokens"] == ["<s0>", "<s1>"]


def test_a_folder_without_models_says_so_beside_the_empty_table(tmp_path, capsys, caplog):
    """Nothing at all was printed, as if the command had done nothing."""
    (tmp_path / "empty").mkdir()
    assert main(["inspect", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == ""
    assert caplog.messages == [f"{tmp_path}/empty: no model files in it"]


def test_the_projects_own_weights_are_told(capsys):
    assert main(["inspect", "--no-hash", str(ROOT / "weights" / "miniature")]) == 0
    out = capsys.readouterr().out
    assert "kind: diffusers\nformat: StableDiffusionXLPipeline\nbase model: SDXL" in out
    assert "unet: UNet2DConditionModel" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>", "x: an HTML page, expected safetensors"),
        (
            b"\x80\x02}q\x00X\x05\x00\x00\x00",
            "x: a pickle, expected safetensors; `tilemix weights convert` makes one",
        ),
        (None, "{path}: no such file or folder"),
    ],
)
@pytest.mark.parametrize("option", ["--no-hash", "--all-hashes", "--lookup"])
def test_a_refusal_is_one_line(tmp_path, content, message, option, capsys):
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path), option]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"tilemix inspect: {message.format(path=path)}\n"


def test_no_hash_and_all_hashes_together_are_wrong_usage(model):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "--no-hash", "--all-hashes", str(model)])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("declared", "verdict"),
    [
        ("SHA", "yes"),
        ("FIRST", "no: it is of the first 8 MiB only"),
        ("0123456789", "no: another content"),
        ("civitai: 1 @ 2", "unknown"),
    ],
)
def test_a_declared_hash_comes_with_a_verdict(tmp_path, declared, verdict, capsys):
    path = write_model(tmp_path / "big.safetensors", {"lora_unet_out_2.lora_down.weight": (8, 700_000)})
    content = path.read_bytes()
    values = {
        "SHA": hashlib.sha256(content).hexdigest(),
        "FIRST": hashlib.sha256(content[: 2**23]).hexdigest()[:10],
    }
    side = tmp_path / "big.safetensors.metadata.json"
    side.write_text(json.dumps({"hash": values.get(declared, declared)}))
    assert main(["inspect", "--all-hashes", str(path)]) == 0
    assert f"\nverified: {verdict}\n" in capsys.readouterr().out


def test_a_lookup_writes_the_sidecar_and_shows_it(model, monkeypatch, capsys):
    site = Site()
    monkeypatch.setenv("TILEMIX_CIVITAI_URL", site.url)
    site.answers = [version(model)]
    assert main(["inspect", "--lookup", str(model)]) == 0
    captured = capsys.readouterr()
    assert "verified: yes" in captured.out
    assert "base as declared: SDXL 1.0" in captured.out
    assert json.loads(model.with_name("tile.safetensors.metadata.json").read_text())["source"] == "civitai"
    site.server.shutdown()
    site.server.server_close()


def test_a_lookup_of_an_unknown_file_shows_what_is_known_here(model, monkeypatch, capsys, caplog):
    site = Site()
    monkeypatch.setenv("TILEMIX_CIVITAI_URL", site.url.replace("http://", "http://me:secret@"))
    site.answers = [NOT_FOUND]
    with caplog.at_level("INFO"):
        assert main(["inspect", "--lookup", str(model)]) == 0
    assert "hash: " in capsys.readouterr().out
    assert f"tile.safetensors: not known to {site.url[7:]}" in caplog.text
    assert "secret" not in caplog.text
    site.server.shutdown()
    site.server.server_close()


def test_a_lookup_offline_says_so(model, monkeypatch, capsys):
    monkeypatch.setattr(civitai, "RETRY_AFTER", 0.0)
    monkeypatch.setenv("TILEMIX_CIVITAI_URL", "http://127.0.0.1:9")
    assert main(["inspect", "--lookup", str(model)]) == 1
    error = capsys.readouterr().err
    assert "127.0.0.1:9: cannot be reached (offline?): " in error
    assert error.count("\n") == 1


def test_text_from_a_file_cannot_steer_the_terminal(tmp_path, capsys):
    path = write_model(
        tmp_path / "x", SDXL_LORA, metadata={"modelspec.title": "\x1b[2J\nkind: vae" + "x" * 500}
    )
    assert main(["inspect", "--no-hash", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\nkind: vae" not in out
    assert max(map(len, out.splitlines())) < 200


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "PROGRESS_DELAY", 0)
    path = write_model(tmp_path / "big.safetensors", {"lora_unet_out_2.lora_down.weight": (8, 2_000_000)})
    assert main(["inspect", str(path)]) == 0
    assert capsys.readouterr().err == ""
    os.utime(path, ns=(0, 0))  # so that it is hashed again
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["inspect", str(path)]) == 0
    assert "big.safetensors:" in terminal.getvalue()
    assert "%|" in terminal.getvalue()


def test_inspecting_does_not_load_torch(model):
    code = (
        "import sys; from tilemix.cli import main; assert main(['inspect', '--all-hashes', sys.argv[1]]) == 0; "
        "sys.exit(int(bool({'torch', 'safetensors', 'httpx', 'tqdm'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
