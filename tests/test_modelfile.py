import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tilemix.errors import ModelFileError
from tilemix.modelfile import TensorInfo, read_header


def write(path, header, data=b"", *, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(begin, end, *, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_file_of_the_library_reads_back(tmp_path):
    path = tmp_path / "lora.bin"  # the content decides, not the name
    save_file(
        {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path, metadata={"format": "pt"}
    )
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.tensors == {"a": TensorInfo("F32", (2, 3), (0, 24)), "b": TensorInfo("F16", (4,), (24, 32))}
    assert path.stat().st_size == header.data_start + 32


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8)}, bytes(8), "'a' spans 8 bytes, its shape and dtype need 4"),
        ({"a": entry(0, 4)}, bytes(3), "truncated: 3 bytes of data, the header describes 4"),
        ({"a": entry(0, 4)}, bytes(5), "5 bytes of data, the header describes 4"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "'b' begins at byte 8 of the data, expected 4"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), "'b' begins at byte 0 of the data, expected 4"),
        ({"../../x": entry(0, 4)}, bytes(4), "'../../x' is no tensor name"),
        ({"a": entry(0, 4, dtype="F3")}, bytes(4), "'a' has dtype 'F3'; known: F64, F32"),
        ({"a": entry(0, 4, shape=(-1,))}, bytes(4), "'a' has the shape [-1]"),
        ({"a": entry(0, 0, shape=(0,))}, b"", "'a' has the shape [0]"),
        ({"a": entry(0, 4, shape=(1,) * 9)}, bytes(4), "'a' has the shape [1, 1"),
        ({"a": entry(0, 4, shape=(1.0,))}, bytes(4), "'a' has the shape [1.0]"),
        ({"a": entry(4, 0)}, bytes(4), "'a' has the offsets [4, 0]"),
        (
            {"a": {**entry(0, 4), "more": 1}},
            bytes(4),
            "'a' is not described by dtype, shape and data_offsets alone",
        ),
        ({"a": 1}, b"", "'a' is not described by dtype, shape and data_offsets alone"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ is no table of texts"),
        (
            {"__metadata__": {"a": "x" * 2**21}},
            b"",
            "2097153 characters of metadata, expected at most 1048576",
        ),
        (b'{"a":1,"a":1}', b"", "the header names 'a' twice"),
        (b"{nonsense", b"", "the header is not JSON: Expecting property name"),
        (b"{" * 100_000, b"", "the header is not JSON: "),
        (b'{"\xff":1}', b"", "the header is not JSON: 'utf-8' codec"),
        ({f"t{i}": entry(0, 0) for i in range(20_001)}, b"", "20001 tensors, expected at most 20000"),
    ],
)
def test_a_broken_header_is_refused_by_its_fault(tmp_path, header, data, message):
    with pytest.raises(ModelFileError) as caught:
        read_header(write(tmp_path / "x.safetensors", header, data))
    assert str(caught.value).startswith(f"x.safetensors: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x: 0 bytes are no safetensors file"),
        (b"PK\x03\x04" + bytes(60), "x: a zip archive (probably a pickled checkpoint), expected safetensors"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", "x: a pickle, expected safetensors"),
        (b"<!DOCTYPE html><html>", "x: an HTML page, expected safetensors"),
        (
            b"PK\x03\x04x/data.pkl\x80\x02layer_structure",
            "x: a pickled hypernetwork, which SDXL does not have, expected safetensors",
        ),
        (b"\x80\x02}string_to_param", "x: a pickled textual inversion embedding, expected safetensors"),
        (b"\r\n <html lang=en>", "x: an HTML page, expected safetensors"),
        (b"GGUF\x03" + bytes(9), "x: a GGUF file, expected safetensors"),
        (b"\x1f\x8b\x08" + bytes(9), "x: a gzip archive, expected safetensors"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "x: a picture, expected safetensors"),
        (bytes(257) + b"ustar" + bytes(250), "x: a tar archive, expected safetensors"),
        (
            b'{"error": "not found"}',
            "x: a JSON text (perhaps a server's error message), expected safetensors",
        ),
        (b"something else", "x: starts with b'somethin', expected safetensors"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "x: a git-lfs pointer, not the file itself, expected safetensors",
        ),
        (
            (2**40).to_bytes(8, "little") + b"{}" + bytes(9),
            "x: a header of 1099511627776 bytes, expected at most 8388608",
        ),
        ((99).to_bytes(8, "little") + b"{}", "x: truncated: the header needs 107 bytes, found 10"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, message):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert str(caught.value) == message


def test_a_header_of_eight_mebibytes_is_refused_quickly(tmp_path):
    path = write(tmp_path / "x", b"{" + b'"a":1,' * (2**20) + b'"b":1}')
    began = time.process_time()
    with pytest.raises(ModelFileError):
        read_header(path)
    assert time.process_time() - began < 1


@given(content=st.binary(max_size=300))
def test_no_content_raises_anything_but_our_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(len(content).to_bytes(8, "little") + b"{" + content)
    with pytest.raises(ModelFileError):
        read_header(path)


def test_a_missing_file_is_our_error_too(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read: No such file or directory"):
        read_header(tmp_path / "nowhere")
