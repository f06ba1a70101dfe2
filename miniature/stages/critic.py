"""What the eye misses and a mean error does not: losses on the texture of the decoder's pictures.

A latent of eight pixels cannot tell where exactly an edge runs, so the picture with the least error is blurred.
A critic that looks at small patches, trained beside the decoder, and the power at each frequency both ask for a
picture that could be a photograph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTHS = (32, 64, 96)
BRIGHTNESS = (0.299, 0.587, 0.114)


class PatchCritic(nn.Module):
    """Answers for each patch of about 20 pixels how much it looks like a photograph's.

    Three convolutions with spectral normalization (Miyato et al., ICLR 2018, arXiv 1802.05957) and one that answers.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for given, width in zip((3, *WIDTHS), WIDTHS, strict=False):
                layers += [spectral_norm(nn.Conv2d(given, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            layers.append(spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1)))
            self.layers = nn.Sequential(*layers)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the answers (n, 1, h/8, w/8) for pictures (n, 3, h, w), -1..1."""
        answers: torch.Tensor = self.layers(pictures)
        return answers


def critic_loss(critic: PatchCritic, given: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Return the hinge loss of the critic, which should tell the decoder's pictures from photographs."""
    return (F.relu(1 - critic(pictures)) + F.relu(1 + critic(given.detach()))).mean()


def spectrum_loss(given: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean difference in the logarithm of the power at each frequency, over rings of pictures (n, 3, h, w).

    It is that of the brightness, under a Hann window, averaged over the batch first: the power of one crop is noise.
    """
    ours, theirs = (_ring_power(one) for one in (given, pictures))
    return (ours.log() - theirs.log()).abs().mean()


def _ring_power(pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean power (side // 2,) at each distance from frequency 0, which is left out."""
    side = pictures.shape[-1]
    weights = torch.tensor(BRIGHTNESS, device=pictures.device)
    bright = torch.einsum("c,nchw->nhw", weights, pictures)
    window = torch.hann_window(side, periodic=False, device=pictures.device)
    bright = (bright - bright.mean(dim=(1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(bright).abs().square().mean(dim=0).flatten()
    frequency = torch.fft.fftfreq(side, device=pictures.device) * side
    ring = torch.hypot(frequency[:, None], frequency).round().long().flatten().clamp(max=side // 2)
    total = torch.zeros(side // 2 + 1, device=pictures.device).index_add(0, ring, power)
    return total[1:] / torch.bincount(ring, minlength=side // 2 + 1)[1:] + 1e-6
