"""The miniature's parts: SDXL's own classes and file layout at a small size.

A model folder as `StableDiffusionXLPipeline.from_pretrained` reads it::

    model_index.json
    scheduler/scheduler_config.json
    tokenizer/ tokenizer_2/            CLIP's real vocabulary, 49,408 pieces
    text_encoder/ text_encoder_2/      config.json, model.safetensors
    unet/ vae/                         config.json, diffusion_pytorch_model.safetensors

Tensors are stored in fp16; training and drawing may use other dtypes.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tilemix.errors import MissingFilesError

if TYPE_CHECKING:
    from miniature.recipe import Recipe

VOCABULARY_SIZE = 49_408
START_ID = 49_406
END_ID = 49_407
TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")
# Where the open-clip-torch wheel holds the vocabulary.
WHEEL_MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"


@dataclass(slots=True)
class Miniature:
    """The trainable parts of one model."""

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    unet: UNet2DConditionModel
    vae: AutoencoderKL

    def parts(self) -> dict[str, Any]:
        """Return the parts by the names of their folders."""
        return {
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "unet": self.unet,
            "vae": self.vae,
        }


def build_vae(recipe: Recipe) -> AutoencoderKL:
    """Return an untrained VAE; the recipe's seed determines its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae: AutoencoderKL = AutoencoderKL(**recipe.vae_architecture)
    _start_as_a_blur(vae)
    return vae


def _start_as_a_blur(vae: AutoencoderKL) -> None:
    """Initialize the VAE as plain smoothing, so that colors pass through from the first step.

    The residual branches start at zero, the convolutions that change the resolution as a small blur of
    each channel, and the latents' noise at e^-3. With the library's own initialization, reconstructions
    were still gray after 500 steps.
    """
    line = torch.tensor([1.0, 2.0, 1.0])
    blur = torch.outer(line, line) / 16
    channels = vae.config["latent_channels"]
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock2D):
                weight, bias = take_weights(module.conv2)
                weight.zero_()
                bias.zero_()
            elif isinstance(module, (Downsample2D, Upsample2D)):
                weight, bias = take_weights(module.conv)
                weight.zero_()
                bias.zero_()
                for channel in range(weight.shape[0]):
                    weight[channel, channel] = blur
        weight, bias = take_weights(vae.quant_conv)
        weight[channels:] = 0.0
        bias[channels:] = -6.0


def take_weights(layer: torch.nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight and the bias of a convolution, which the recipe's architecture always has."""
    assert isinstance(layer, torch.nn.Conv2d)
    assert layer.bias is not None
    return layer.weight, layer.bias


def build_miniature(recipe: Recipe) -> Miniature:
    """Return an untrained model; the recipe's seed determines its weights.

    The second encoder's `eos_token_id` is 2, as in SDXL's published configuration. transformers then takes
    the pooled vector at the highest token id, which is the end token unless tokens were added.
    """
    vae = build_vae(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        common = {**recipe.text_architecture, "vocab_size": VOCABULARY_SIZE, "bos_token_id": START_ID}
        first = CLIPTextConfig(**common, hidden_act="quick_gelu", eos_token_id=END_ID, pad_token_id=1)
        second = CLIPTextConfig(**common, hidden_act="gelu", eos_token_id=2, pad_token_id=1)
        return Miniature(
            text_encoder=CLIPTextModel(first),
            text_encoder_2=CLIPTextModelWithProjection(second),
            unet=UNet2DConditionModel(**recipe.unet_architecture),
            vae=vae,
        )


def write_tokenizers(folder: Path, wheel: Path) -> None:
    """Write `tokenizer/` and `tokenizer_2/` from the vocabulary in an open-clip-torch wheel.

    The order of the pieces is CLIP's: the 256 bytes, the 256 bytes at the end of a word, one piece for each
    merge, then the two special tokens.

    Raises:
        MissingFilesError: the wheel's vocabulary has another size.
    """
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(WHEEL_MEMBER)).decode("utf-8").split("\n")
    merges = lines[1 : VOCABULARY_SIZE - 2 * 256 - 2 + 1]
    letters = _byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["".join(merge.split()) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) != VOCABULARY_SIZE:
        raise MissingFilesError(
            "recipe-vocabulary-size", file=wheel.name, count=len(vocabulary), expected=VOCABULARY_SIZE
        )
    for name, pad in zip(TOKENIZER_FOLDERS, ("<|endoftext|>", "!"), strict=True):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        config = {
            "add_prefix_space": False,
            "bos_token": "<|startoftext|>",
            "clean_up_tokenization_spaces": False,
            "do_lower_case": True,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": pad,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": "<|endoftext|>",
        }
        _write_json(target / "tokenizer_config.json", config)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Return both tokenizers of a model folder.

    Raises:
        MissingFilesError: the folder has no vocabulary.
    """
    for name in TOKENIZER_FOLDERS:
        if not (folder / name / "vocab.json").is_file():
            raise MissingFilesError("recipe-vocabulary-missing", folder=str(folder / name))
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in TOKENIZER_FOLDERS)
    return first, second


def write_model(folder: Path, model: Miniature, recipe: Recipe, tokenizers: Path) -> None:
    """Write a complete model folder in fp16. It replaces the old one, whose other files are kept.

    The folder is written under a temporary name and then swapped in, so a reader finds the old model or the
    new one. `tokenizers` is a folder with both tokenizers.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in TOKENIZER_FOLDERS:
        shutil.copytree(tokenizers / name, temporary / name)
    for name, part in model.parts().items():
        stored = _half_copy(part)
        stored.save_pretrained(temporary / name, safe_serialization=True)
        _correct_config(temporary / name)
    EulerDiscreteScheduler(**recipe.scheduler).save_pretrained(temporary / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(temporary / "model_index.json", index)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        for path in folder.iterdir():
            if path.is_file() and not (temporary / path.name).exists():
                shutil.copy2(path, temporary / path.name)
        folder.replace(old)
    temporary.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _half_copy(part: Any) -> Any:
    copy = type(part)(part.config) if hasattr(part.config, "to_dict") else type(part).from_config(part.config)
    copy.load_state_dict(part.state_dict())
    return copy.half()


def _correct_config(folder: Path) -> None:
    """Make every part load in fp32 unless the caller names a dtype, and make its files readable for everybody.

    transformers would follow the config and load a text encoder in fp16, which is slow on a CPU and differs
    from how diffusers loads the UNet and the VAE.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "dtype" in config:
        config["dtype"] = "float32"
        _write_json(path, config)
    for file in folder.iterdir():
        file.chmod(0o644)


def _byte_letters() -> list[str]:
    """Return the letter for each byte in CLIP's order: printable bytes first, as themselves."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
