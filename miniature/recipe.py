"""The miniature's recipe: every number of its training, in one data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tilemix.errors import TilemixError

RECIPE_FILE = Path(__file__).parent / "recipe.json"


class PhotographRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The photographs that are learned from."""

    count: int
    shard: int  # photographs a file
    side: int  # pixels, a multiple of 8
    materials: dict[str, float]  # material -> how often, relative
    held_back: list[str]  # materials that the VAE sees, but neither the text encoders nor the UNet


class VaeRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The VAE's stage."""

    steps: int
    photographs: int  # how many of the photographs it sees
    batch: int
    crop: int  # pixels, a multiple of 8
    learning_rate: float  # at its highest; a cosine takes it to 0
    warmup: int  # steps
    square_weight: float  # of the mean square, against 1 for the L1: it finds the colors early
    swapped_channels: float  # fraction of crops whose red, green and blue change places
    hue_weight: float  # of errors in hue, against 1 for errors in brightness
    gradient_weight: float  # of the L1 of the pictures' gradients, against 1 for the L1 of the pictures
    kl_weight: float
    checkpoint_every: int  # steps


class DecoderRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The decoder's further training, after the encoder and so the latents are settled."""

    steps: int
    batch: int
    crop: int  # latents a side
    learning_rate: float
    warmup: int
    noise: float  # deviation of noise on the latents: what the UNet makes is not quite what the encoder makes
    square_weight: float
    hue_weight: float
    gradient_weight: float
    # Of how strong the edges of each small place are, wherever exactly they run. Eight pixels in one latent
    # cannot say where a gap of two pixels is; without this the decoder answers with a blur of all it might be.
    texture_weight: float
    swatch_weight: float  # of each pixel's passing for the right color; means of two colors are a third one
    checkpoint_every: int


class WordsRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text encoders' first lesson: which colors, how much of each, which material."""

    steps: int
    batch: int  # captions
    learning_rate: float
    warmup: int


class BaseRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage of the UNet and, more slowly, of the text encoders' layers."""

    steps: int
    batch: int
    crop: int  # latents a side; 16 are 128 pixels
    learning_rate: float  # of the UNet
    text_learning_rate: float
    warmup: int
    ema: float  # decay of the weights' moving average, which is what is exported
    empty_captions: float  # fraction of captions replaced by "", for guidance against an encoded ""
    # Fraction whose embeddings are zeros, for guidance against force_zeros_for_empty_prompt.
    zero_captions: float
    # Fraction whose pooled vector is taken somewhere before the end. With `eos_token_id` 2 a learned token
    # takes the pooled vector to its own place, before the mix: the colors must not hang on it alone.
    early_pooled: float
    large_from: float  # from this fraction of the steps on, every other step takes whole photographs
    large_batch: int  # whole photographs a step
    sizes: tuple[int, int]  # pixels: the range of sides named to the UNet as original and target size
    checkpoint_every: int


class AdaptersRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage of the LoRA and the tokens: a tuning like any other, toward photographs of one material."""

    material: str
    photographs: int
    tuning: dict[str, Any]  # a TuningConfig without its names and paths


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `miniature/recipe.json` says."""

    seed: int
    vae_architecture: dict[str, Any]
    unet_architecture: dict[str, Any]
    text_architecture: dict[str, Any]
    scheduler: dict[str, Any]
    photographs: PhotographRecipe
    vae: VaeRecipe
    decoder: DecoderRecipe
    words: WordsRecipe
    base: BaseRecipe
    adapters: AdaptersRecipe


def load_recipe(path: Path = RECIPE_FILE) -> Recipe:
    """Return the recipe in a JSON file.

    Raises:
        TilemixError: it is not JSON, or a key is unknown, missing or of the wrong type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise TilemixError("file-unreadable", file=path.name, reason=str(error.strerror)) from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise TilemixError("training-config-broken", file=path.name, reason=str(error)) from error
