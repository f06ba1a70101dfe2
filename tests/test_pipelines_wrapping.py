"""Convolutions that wrap, against torch's own circular padding."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn import Conv2d, Sequential

from tilemix.pipelines.wrapping import wrapping

CASES = [
    (4, 32, 32, 32),
    (32, 64, 8, 8),
    (64, 64, 16, 24),
    (16, 3, 64, 40),
]  # channels in and out, height, width


def circular(convolution, x):
    """The result of a convolution in fp32, padded by torch."""
    padded = F.pad(x.float(), (1, 1, 1, 1), mode="circular")
    return F.conv2d(padded, convolution.weight.float(), convolution.bias.float(), convolution.stride)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution_wraps(case, stride, layout, dtype):
    """In bf16 with a stride of 2, oneDNN gets a strip that is one column wide wrong by 3."""
    taken, given, height, width = case
    torch.manual_seed(0)
    convolution = Conv2d(taken, given, 3, stride, padding=1).to(dtype, memory_format=layout)
    x = torch.randn(2, taken, height, width).to(dtype, memory_format=layout)
    with torch.inference_mode(), wrapping(convolution):
        wrapped = convolution(x).float()
        assert torch.allclose(
            wrapped, circular(convolution, x), atol=1e-5 if dtype == torch.float32 else 0.02
        )
    assert not torch.allclose(convolution(x).float(), wrapped, atol=0.05)


def test_padding_by_the_caller_is_filled():
    """As in the encoder of diffusers' VAE, which pads at the right and the bottom alone."""
    convolution = Conv2d(3, 5, 3, stride=2)
    x = torch.randn(1, 3, 16, 24)
    expected = F.conv2d(
        F.pad(x, (0, 1, 0, 1), mode="circular"), convolution.weight, convolution.bias, stride=2
    )
    with torch.inference_mode(), wrapping(convolution):
        assert torch.equal(convolution(F.pad(x, (0, 1, 0, 1))), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_behind(error):
    network = Sequential(Conv2d(3, 3, 3, padding=1), Conv2d(3, 3, 1))
    x = torch.randn(1, 3, 8, 8)
    before = network(x)

    def fail():
        assert not torch.allclose(network(x), before)
        raise error

    with pytest.raises(error), wrapping(network):
        fail()
    assert torch.equal(network(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())  # noqa: SLF001  torch has no public name


def test_compiled_code_is_put_aside_and_back():
    """It would not call the hooks."""
    network = Sequential(Conv2d(3, 3, 3, padding=1))
    network.forward = compiled = lambda _: "compiled"
    x = torch.randn(1, 3, 8, 8)
    with wrapping(network):
        assert torch.allclose(network(x), circular(network[0], x), atol=1e-5)
    assert network.forward is compiled


def test_what_it_cannot_wrap_is_not_passed_over():
    with pytest.raises(AssertionError), wrapping(Conv2d(3, 3, 5, padding=2)):
        pass
