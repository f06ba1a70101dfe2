import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tilemix.adapters.tensor_file import DTYPES, TensorFile
from tilemix.errors import ModelFileError
from tilemix.modelfile.header import DTYPE_BITS


def write(path, tensors, *, padding=b""):
    """Write a safetensors file whose header ends in `padding`, so that its data may begin anywhere."""
    save_file(tensors, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    return path


def test_every_dtype_of_tensors_is_one_of_the_header_check():
    assert DTYPES.keys() < DTYPE_BITS.keys()
    assert all(8 * dtype.itemsize == DTYPE_BITS[name] for name, dtype in DTYPES.items())


@pytest.mark.parametrize("padding", [b"", b" ", b"   "], ids=len)
def test_tensors_are_the_librarys_wherever_the_data_begins(tmp_path, padding):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype).removeprefix("torch."): (torch.randn((3, 5), generator=generator) * 9).to(dtype)
        for dtype in DTYPES.values()
    }
    tensors |= {"number": torch.tensor(8.0), "kernel": torch.randn((2, 3, 3, 3), generator=generator)}
    path = write(tmp_path / "t.safetensors", tensors, padding=padding)
    file, theirs = TensorFile(path), load_file(path)
    assert set(file.header.tensors) == set(theirs)
    for name, expected in theirs.items():
        found = file.get_tensor(name)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))


def test_an_empty_marker_is_an_empty_tensor(tmp_path):
    path = write(tmp_path / "t.safetensors", {"v_pred": torch.zeros(0), "weight": torch.ones(2)})
    file = TensorFile(path)
    assert file.get_tensor("v_pred").shape == (0,)
    assert file.find_not_finite() == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 17, 36])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(tmp_path, dtype, value, place):
    tensors = {
        "a": torch.ones((5, 7)).to(dtype),
        "b": torch.ones(37).to(dtype),
        "c": torch.ones(64).to(dtype),
        "count": torch.tensor(4),
        "other": torch.ones(3),
    }
    tensors["b"][place] = value
    assert TensorFile(write(tmp_path / "t.safetensors", tensors)).find_not_finite() == {"b"}


def test_the_largest_numbers_of_a_dtype_are_finite(tmp_path):
    tensors = {
        str(dtype): torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
    }
    tensors["float32"] = torch.full((1000,), torch.finfo(torch.float32).max)
    assert TensorFile(write(tmp_path / "t.safetensors", tensors)).find_not_finite() == set()


def test_a_file_stays_the_same_when_another_takes_its_name(tmp_path):
    """The base was opened anew for every merge, and its tensors were found by what another file's header said."""
    path = write(tmp_path / "base.safetensors", {"weight": torch.ones(4)})
    file = TensorFile(path)
    write(tmp_path / "other.safetensors", {"weight": torch.zeros(9), "more": torch.ones(2)}).replace(path)
    file.check_size()
    assert torch.equal(file.get_tensor("weight"), torch.ones(4))


def test_a_file_that_was_shortened_in_place_is_refused_before_its_pages_are_read(tmp_path):
    path = write(tmp_path / "base.safetensors", {"weight": torch.ones(4)})
    file = TensorFile(path)
    size = path.stat().st_size
    os.truncate(path, 20)
    with pytest.raises(ModelFileError) as caught:
        file.check_size()
    assert str(caught.value) == f"base.safetensors: has 20 bytes now, {size} when it was loaded"


def test_released_pages_are_read_again(tmp_path):
    file = TensorFile(write(tmp_path / "t.safetensors", {"weight": torch.arange(5000)}))
    tensor = file.get_tensor("weight")
    file.release_pages()
    assert torch.equal(tensor, torch.arange(5000))


def test_what_is_no_safetensors_file_is_refused_as_the_header_check_does(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in [
        (tmp_path / "missing", f"{tmp_path}/missing: cannot be read: No such file or directory"),
        (tmp_path, f"{tmp_path}: not a regular file"),
        (pipe, f"{pipe}: not a regular file"),
    ]:
        with pytest.raises(ModelFileError) as caught:
            TensorFile(path)
        assert str(caught.value) == message
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    short = tmp_path / "short"
    short.write_bytes(len(header).to_bytes(8, "little") + header + bytes(7))
    with pytest.raises(ModelFileError, match="short: truncated: 7 bytes of data, the header describes 8"):
        TensorFile(short)
