"""The miniature's recipe: every number of its training, from one data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tilemix.errors import TilemixError

RECIPE_FILE = Path(__file__).parent / "recipe.json"


class PhotographRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The training photographs."""

    count: int
    shard: int  # photographs in a file
    side: int  # pixels, a multiple of 8
    materials: dict[str, float]  # material -> relative frequency
    held_back: list[str]  # materials shown to the VAE, but not to the text encoders or the UNet


class VaeRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The VAE's stage."""

    steps: int
    photographs: int  # how many of the photographs it sees
    batch: int
    crop: int  # pixels, a multiple of 8
    tiles: float  # fraction of crops that show the materials held back; the others show any
    learning_rate: float  # the peak; a cosine goes down to 0
    warmup: int  # steps
    square_weight: float  # of the mean square, against 1 for the L1; finds the colors early
    swapped_channels: float  # fraction of crops with red, green and blue permuted
    hue_weight: float  # of errors in hue, against 1 for errors in brightness
    gradient_weight: float  # of the gradients' L1, against 1 for the pictures' L1
    kl_weight: float
    checkpoint_every: int  # steps


class DecoderRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The decoder's further training, once the encoder and so the latents are fixed."""

    steps: int
    batch: int
    crop: int  # latents per side
    learning_rate: float
    warmup: int
    noise: float  # standard deviation of noise on the latents, since the UNet's differ from the encoder's
    square_weight: float
    hue_weight: float
    gradient_weight: float
    spectrum_weight: float  # of the power at each frequency being a photograph's
    critic_weight: float  # of passing for a photograph with a critic of small patches, see `critic`
    critic_learning_rate: float  # constant
    tiles: float  # fraction of crops that show the materials held back; the others show any
    checkpoint_every: int


class WordsRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text encoders' first stage: which colors, how much of each, which material."""

    steps: int
    batch: int  # captions
    learning_rate: float
    warmup: int


class BaseRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage that trains the UNet and, more slowly, the text encoders' layers."""

    steps: int
    batch: int
    crop: int  # latents per side; 16 are 128 pixels
    learning_rate: float  # of the UNet
    text_learning_rate: float
    warmup: int
    ema: float  # decay of the weights' moving average, which is exported
    empty_captions: float  # fraction of captions replaced by "", for guidance against an encoded ""
    # Fraction of embeddings set to zero, for guidance with force_zeros_for_empty_prompt.
    zero_captions: float
    # Fraction of pooled vectors taken before the caption's end. With `eos_token_id` 2 the pooled vector moves
    # to a learned token, which stands before the mix, so the colors must not depend on it alone.
    early_pooled: float
    large_from: float  # from this fraction of the steps on, every other step uses whole photographs
    large_batch: int  # whole photographs per step
    sizes: tuple[int, int]  # pixels: the range of sides told to the UNet as original and target size
    drafted: float  # fraction of examples with the noise of a picture that is drawn from a draft
    checkpoint_every: int


class AdaptersRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stage of the LoRA and the tokens: an ordinary training on photographs of one material."""

    material: str
    photographs: int
    tuning: dict[str, Any]  # a TuningConfig without its names and paths


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of `miniature/recipe.json`."""

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
        TilemixError: it cannot be read, is not JSON, or a key is unknown, missing or of the wrong type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise TilemixError("file-unreadable", file=path.name, reason=str(error.strerror)) from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise TilemixError("file-json", file=path.name, reason=str(error)) from error
