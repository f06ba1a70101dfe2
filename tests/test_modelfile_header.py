import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.pace import assert_quick
from tests.quick import first_quick
from tilemix.errors import ModelFileError
from tilemix.modelfile.header import DTYPE_BITS, TensorInfo, read_header
from tilemix.modelfile.inspection import read as inspect_file

CONVERT = "expected safetensors; `tilemix weights convert` makes one"


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
        ({"x" * 1025: entry(0, 4)}, bytes(4), "a tensor's name of 1025 characters, expected 1 to 1024"),
        ({"": entry(0, 4)}, bytes(4), "a tensor's name of 0 characters, expected 1 to 1024"),
        ({"a\nb\x1b[2J": entry(4, 8)}, bytes(8), "'a\\nb\\x1b[2J' begins at byte 4 of the data"),
        ({"a": entry(0, 4, dtype="F3")}, bytes(4), "'a' has dtype 'F3'; known: F64, F32"),
        ({"a": entry(0, 4, shape=(-1,))}, bytes(4), "'a' has the shape [-1]"),
        (
            {"a": entry(0, 2, dtype="F4", shape=(3,))},
            bytes(2),
            "'a' spans 2 bytes, its shape and dtype need 1.5",
        ),
        ({"a": entry(0, 4, shape=(0,))}, bytes(4), "'a' spans 4 bytes, its shape and dtype need 0"),
        ({"a": entry(0, 4, shape=(1,) * 9)}, bytes(4), "'a' has the shape [1, 1"),
        ({"a": entry(0, 4, shape=(1.0,))}, bytes(4), "'a' has the shape [1.0]"),
        ({"a": entry(4, 0)}, bytes(4), "'a' has the offsets [4, 0]"),
        (
            {"a": {**entry(0, 4), "more": 1}},
            bytes(4),
            "'a' is not described by dtype, shape and data_offsets alone",
        ),
        ({"a": 1}, b"", "'a' is not described by dtype, shape and data_offsets alone"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not an object of strings"),
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
        (b"", "x: 0 bytes are not a safetensors file"),
        (b"PK\x03\x04" + bytes(60), f"x: a zip archive (probably a pickled checkpoint), {CONVERT}"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", f"x: a pickle, {CONVERT}"),
        (b"<!DOCTYPE html><html>", "x: an HTML page, expected safetensors"),
        (
            b"PK\x03\x04x/data.pkl\x80\x02layer_structure",
            f"x: a pickled hypernetwork, {CONVERT}",
        ),
        (b"\x80\x02}string_to_param", f"x: a pickled textual inversion embedding, {CONVERT}"),
        (b"\r\n <html lang=en>", "x: an HTML page, expected safetensors"),
        (b"GGUF\x03" + bytes(9), "x: a GGUF file, expected safetensors"),
        (b"\x1f\x8b\x08" + bytes(9), "x: a gzip file, expected safetensors"),
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


MIB_8 = 8 * 2**20
TENSOR = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def flood(begin: bytes, unit: bytes, end: bytes) -> bytes:
    """A header of just under 8 MiB that repeats `unit`."""
    return begin + unit * ((MIB_8 - len(begin) - len(end)) // len(unit)) + end


def names(value: bytes, count: int = 10**7, *, last: bytes = b"") -> bytes:
    """A header of `count` distinct names, or of as many as 8 MiB hold, all with one value."""
    entries, size = [], 2 + len(last)
    for i in range(count):
        entries.append(b'"%x":' % i + value)
        size += len(entries[-1]) + 1
        if size > MIB_8 - 100:
            break
    return b"{" + b",".join(entries) + last + b"}"


ATTACKS = {
    "a million tensors": (lambda: names(b"{}"), r"about \d+ texts in the header, expected at most 120000"),
    "a million numbers": (lambda: names(b"1"), r"about \d+ texts in the header"),
    "a million metadata": (
        lambda: b'{"__metadata__":' + names(b'""')[:-40].rpartition(b",")[0] + b"}}",
        "texts",
    ),
    "lists": (lambda: flood(b'{"a":[', b"[],", b"[]]}"), r"2796201 times '\[' in the header"),
    "objects": (lambda: flood(b'{"a":[', b"{},", b"{}]}"), r"times '\{' in the header"),
    "a shape of millions": (lambda: flood(b'{"a":{"shape":[', b"300,", b"1]}}"), "times ',' in the header"),
    "as many values as may be": (
        lambda: b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b"300," * 519_000 + b"1]}}",
        r"'a' has the shape \[300, 300, 300, 300, 300, 300, \.\.\.\]",
    ),
    "as many names as may be": (lambda: names(b"1", 119_990), "119990 tensors, expected at most 20000"),
    "as many empty tensors as may be": (
        lambda: names(b"{}", 119_000),
        "119000 tensors, expected at most 20000",
    ),
    "nested objects": (lambda: b'{"a":' * 59_000, "is not JSON"),
    "nested lists": (lambda: b'{"a":' + b"[" * 139_000, "is not JSON"),
    # It took 86 seconds: each of the names was counted among all the others.
    "a name twice at the end of many": (
        lambda: names(b"1", 100_000, last=b',"1869f":2'),
        "names '1869f' twice",
    ),
    "a tensor twice": (lambda: names(TENSOR, 19_000, last=b',"4a37":' + TENSOR), "names '4a37' twice"),
    "a number of millions of digits": (lambda: flood(b'{"a":', b"9", b"}"), "is not JSON: Exceeds the limit"),
    "a text of millions of characters": (
        lambda: flood(b'{"__metadata__":{"a":"', "😀".encode(), b'"}}'),
        "4 bytes of data, the header describes 0",
    ),
    "20,000 tensors in one place": (
        lambda: names(TENSOR, 20_000),
        "'1' begins at byte 0 of the data, expected 4",
    ),
    "20,001 metadata": (
        lambda: b'{"__metadata__":' + names(b'""', 10_001) + b"}",
        "10001 entries of metadata, expected at most 10000",
    ),
}
MEASURE = """
import sys, time
from pathlib import Path
from tilemix.errors import ModelFileError
from tilemix.modelfile.header import read_header
began = time.process_time()
try:
    read_header(Path(sys.argv[1]))
    sys.exit("accepted")
except ModelFileError as error:
    message = str(error)
print(time.process_time() - began)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
print(message)
"""


@pytest.mark.parametrize("attack", first_quick(ATTACKS))
def test_a_hostile_header_is_refused_in_a_fifth_of_a_second_and_200_megabytes(tmp_path, attack):
    make, message = ATTACKS[attack]
    raw = make()
    assert len(raw) <= MIB_8
    path = write(tmp_path / "x.safetensors", raw, bytes(4))

    def measure() -> float:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seconds, kilobytes, refusal = done.stdout.splitlines()
        assert re.search(message, refusal), refusal
        assert len(refusal) < 250
        assert int(kilobytes) < 200_000
        return float(seconds)

    assert_quick(measure, 0.2)


def test_the_largest_header_within_the_limits_is_read(tmp_path):
    count = 20_000
    tensors = {f"{'x' * 240}.{i}": entry(4 * i, 4 * i + 4, shape=(1,) * 8) for i in range(count)}
    texts = {f"{i}": '"[{,' * 20 for i in range(4_900)}  # JSON in texts, as trainers write it
    path = write(tmp_path / "x", {"__metadata__": texts, **tensors}, bytes(4 * count))
    assert len(read_header(path).tensors) == count


def test_metadata_may_fill_the_header(tmp_path):
    """Tag counts of 1,500 captions and a cover image in base64 were refused over 1 MiB."""
    tags = json.dumps({"10_tile": {f"гранула {i}": 1 for i in range(45_000)}})
    metadata = {"ss_tag_frequency": tags, "ssmd_cover_images": "iVBORw0KGgo" * 300_000}
    path = write(tmp_path / "x", {"__metadata__": metadata, "a": entry(0, 4)}, bytes(4))
    assert read_header(path).metadata == metadata


def test_a_name_may_be_any_text(tmp_path):
    names = ["bundle_emb.my tile.clip_l", "bundle_emb.плитка:2.clip_l", "../../x"]
    header = {name: entry(4 * place, 4 * place + 4) for place, name in enumerate(names)}
    assert list(read_header(write(tmp_path / "x", header, bytes(12))).tensors) == names


def test_a_checkpoint_may_say_v_prediction_by_an_empty_tensor(tmp_path):
    header = {"v_pred": entry(0, 0, shape=(0,)), "a": entry(0, 4)}
    assert read_header(write(tmp_path / "x", header, bytes(4))).tensors["v_pred"].shape == (0,)


def test_every_dtype_and_empty_tensor_that_the_library_writes_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    kinds = {
        "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
        "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F4": torch.float4_e2m1fn_x2,
    }  # fmt: skip
    tensors = {name: torch.zeros(64, dtype=torch.uint8).view(dtype) for name, dtype in kinds.items()}
    tensors |= {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn), "none": torch.empty(3, 0, 2)}
    save_file(tensors, path)
    found = read_header(path).tensors
    with safe_open(path, framework="pt") as theirs:
        for name in kinds:
            part = theirs.get_slice(name)
            assert (found[name].dtype, list(found[name].shape)) == (part.get_dtype(), part.get_shape())
    assert (found["scaled_fp8"].shape, found["none"].shape) == ((0,), (3, 0, 2))
    assert inspect_file(path, hashes="none").tensors == 10


def test_what_is_no_regular_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ModelFileError, match="not a regular file"):
            read_header(path)


@st.composite
def valid_files(draw):
    """The bytes of a valid file, and its tensors."""
    sizes = st.lists(st.integers(0, 5), max_size=3)
    chosen = st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(list(DTYPE_BITS)), sizes),
        max_size=6,
    )
    position, header = 0, {}
    for name, (dtype, shape) in draw(chosen).items():
        shape = [*shape, 4]  # whole bytes, whatever the dtype
        end = position + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = entry(position, end, dtype=dtype, shape=shape)
        position = end
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
    raw = json.dumps(header, ensure_ascii=draw(st.booleans())).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(position), header


@given(file=valid_files())
def test_every_valid_file_is_read_as_the_library_reads_it(tmp_path_factory, file):
    content, header = file
    path = tmp_path_factory.getbasetemp() / "valid"
    path.write_bytes(content)
    ours = read_header(path)
    assert ours.metadata == header.get("__metadata__", {})
    with safe_open(path, framework="np") as theirs:
        assert set(theirs.keys()) == set(ours.tensors)
        for name, tensor in ours.tensors.items():
            assert tuple(theirs.get_slice(name).get_shape()) == tensor.shape
            assert theirs.get_slice(name).get_dtype() == tensor.dtype


@pytest.mark.slow
@given(file=valid_files(), cut=st.integers(1, 40))
def test_no_truncated_file_is_read(tmp_path_factory, file, cut):
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(file[0][:-cut])
    with pytest.raises(ModelFileError):
        read_header(path)


@given(file=valid_files(), data=st.data())
def test_what_we_read_of_a_damaged_file_the_library_reads_too(tmp_path_factory, file, data):
    content = bytearray(file[0])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        ours = read_header(path)
    except ModelFileError:
        return
    with safe_open(path, framework="np") as theirs:
        assert set(theirs.keys()) == set(ours.tensors)


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    raw = rb'{"__metadata__": {"key": "\ud801"}}'
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(ModelFileError, match="not JSON.*surrogates not allowed"):
        read_header(path)


@given(content=st.binary(max_size=300))
def test_no_content_raises_anything_but_our_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(len(content).to_bytes(8, "little") + b"{" + content)
    with pytest.raises(ModelFileError):
        read_header(path)


def test_a_missing_file_is_our_error_too(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read: No such file or directory"):
        read_header(tmp_path / "nowhere")
