"""How to craft an adapter file of each format, and what it must do to the weights, computed by hand in fp64."""

import json
import math
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_sdxl import COMPONENTS
from tilemix.pipelines.loading import ReadyPipeline

# Modules in diffusers' names and the same ones as the original checkpoint names them, with underscores.
# The names on the right are written by hand after the released SDXL checkpoint, not made by the code.
ORIGINAL_NAMES = {
    "unet.conv_in": "lora_unet_input_blocks_0_0",
    "unet.time_embedding.linear_1": "lora_unet_time_embed_0",
    "unet.add_embedding.linear_2": "lora_unet_label_emb_0_2",
    "unet.down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_4_0_skip_connection",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    ),
    "unet.down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k": (
        "lora_unet_input_blocks_8_1_transformer_blocks_1_attn2_to_k"
    ),
    "unet.down_blocks.2.attentions.1.proj_in": "lora_unet_input_blocks_8_1_proj_in",
    "unet.mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": (
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0"
    ),
    "unet.up_blocks.0.attentions.2.transformer_blocks.0.ff.net.0.proj": (
        "lora_unet_output_blocks_2_1_transformer_blocks_0_ff_net_0_proj"
    ),
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "unet.up_blocks.1.attentions.1.proj_out": "lora_unet_output_blocks_4_1_proj_out",
    "unet.up_blocks.2.resnets.2.conv2": "lora_unet_output_blocks_8_0_out_layers_3",
    "unet.conv_out": "lora_unet_out_2",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "text_encoder.encoder.layers.1.mlp.fc1": "lora_te1_text_model_encoder_layers_1_mlp_fc1",
    "text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj": (
        "lora_te2_text_model_encoder_layers_0_self_attn_out_proj"
    ),
    "text_encoder_2.text_projection": "lora_te2_text_projection",
}
MODULES = tuple(ORIGINAL_NAMES)
ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"
CROSS = "unet.down_blocks.2.attentions.1.transformer_blocks.1.attn2"
MIDDLE = "unet.mid_block.attentions.0.transformer_blocks.0"
TEXT = "text_encoder.encoder.layers.1"
TEXT_2 = "text_encoder_2.text_model.encoder.layers.0"
# The layers that LoRAs are mostly trained on, and all that the attention processors' spelling can say.
LINEAR = (f"{ATTENTION}.to_q", f"{CROSS}.to_k", f"{CROSS}.to_v", f"{MIDDLE}.attn1.to_out.0")
TEXT_LINEAR = tuple(f"{TEXT}.self_attn.{layer}" for layer in ("q_proj", "k_proj", "v_proj", "out_proj"))
CONVOLUTIONS = tuple(module for module in MODULES if "conv" in module)
UNET_MODULES = tuple(module for module in MODULES if module.startswith("unet."))

Tensors = dict[str, torch.Tensor]
Truth = Callable[[float], Tensors]  # scale -> the merged weights by "component.module.weight", fp64


@dataclass
class Workbench:
    """The base's weights to craft an adapter for, and a folder to write it to."""

    weights: Mapping[str, torch.Tensor]  # "component.module.weight" -> the pristine weight
    folder: Path
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(11))

    def base(self, module: str) -> torch.Tensor:
        return self.weights[f"{module}.weight"].double()

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * 0.3

    def pair(self, module: str, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a low-rank pair for a module: down and up, four-dimensional for a convolution."""
        out, width, *kernel = self.base(module).shape
        return self.draw(rank, width, *kernel), self.draw(out, rank, *(1 for _ in kernel))

    def write(self, tensors: Tensors, name: str = "x.safetensors", **metadata: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata or None
        )
        return path

    def added(self, deltas: Mapping[str, torch.Tensor]) -> Truth:
        """The truth of every additive format: W + scale * delta."""
        return lambda scale: {
            f"{module}.weight": self.base(module) + scale * delta.double().reshape(self.base(module).shape)
            for module, delta in deltas.items()
        }


Craft = Callable[[Workbench], tuple[Path, Truth | None]]


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    keys: str  # a tensor's name, or what the file holds
    craft: Craft
    message: str | None = None  # the refusal's; None: loaded exactly
    peft: bool = False  # diffusers' own loader reads it right, and can serve as the reference
    tokens: tuple[str, ...] = ()  # what it brings into the vocabulary

    @property
    def verdict(self) -> str:
        return "exact" if self.message is None else "refused"


def product(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """up @ down in fp64, written as a sum over the rank."""
    return torch.einsum("or,ri->oi", up.double().flatten(1), down.double().flatten(1))


def pairs(
    spell: Callable[[str], str],
    modules: tuple[str, ...] = LINEAR + TEXT_LINEAR,
    *,
    suffixes: tuple[str, str] = (".lora_down.weight", ".lora_up.weight"),
    alpha: Callable[[str], float] | None = None,
    rank: Callable[[str], int] = lambda _: 4,
    metadata: Mapping[str, str] | None = None,
    name: str = "x.safetensors",
) -> Craft:
    """Craft a file of low-rank pairs; without `alpha` the factor is 1."""

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        tensors, deltas = {}, {}
        for module in modules:
            down, up = bench.pair(module, rank(module))
            for suffix, tensor in zip(suffixes, (down, up), strict=True):
                tensors[spell(module) + suffix] = tensor
            factor = 1.0
            if alpha is not None:
                tensors[f"{spell(module)}.alpha"] = torch.tensor(float(alpha(module)))
                factor = alpha(module) / rank(module)
            deltas[module] = factor * product(down, up)
        return bench.write(tensors, name, **(metadata or {})), bench.added(deltas)

    return craft


def as_kohya(module: str) -> str:
    """kohya's spelling with diffusers' block names."""
    component, _, path = module.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
    if component == "text_encoder":
        path = f"text_model.{path}"
    return prefix + path.replace(".", "_")


def as_processor(module: str) -> str:
    """diffusers 0.17 to 0.21: `attn1.processor.to_q_lora`, in the text encoders `self_attn.to_q_lora`."""
    attention, _, layer = module.removesuffix(".0").rpartition(".")
    if module.startswith("unet."):
        return f"{attention}.processor.{layer}_lora"
    short = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[layer]
    return f"{attention.replace('.encoder.', '.text_model.encoder.')}.{short}_lora"


def as_comfy(module: str) -> str:
    names = {
        "unet.conv_in": "diffusion_model.input_blocks.0.0",
        f"{ATTENTION}.to_q": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        f"{CROSS}.to_k": "diffusion_model.input_blocks.8.1.transformer_blocks.1.attn2.to_k",
        "unet.mid_block.resnets.1.time_emb_proj": "diffusion_model.middle_block.2.emb_layers.1",
        f"{TEXT}.mlp.fc1": "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1",
        "text_encoder_2.text_projection": "text_encoders.clip_g.transformer.text_projection",
    }
    return names[module]


COMFY_MODULES = (
    "unet.conv_in",
    f"{ATTENTION}.to_q",
    f"{CROSS}.to_k",
    "unet.mid_block.resnets.1.time_emb_proj",
    f"{TEXT}.mlp.fc1",
    "text_encoder_2.text_projection",
)


def as_bare_original(module: str) -> str:
    """The original block names with dots, and no component in front."""
    return as_comfy(module).removeprefix("diffusion_model.")


def bare(module: str) -> str:
    """The name without its component, for files that hold the UNet alone."""
    return module.partition(".")[2]


A_B = (".lora_A.weight", ".lora_B.weight")


def peft_folder(
    config: Mapping[str, object],
    factor: Callable[[str], float],
    *,
    spell: Callable[[str], str] = lambda module: f"base_model.model.{bare(module)}",
    modules: tuple[str, ...] = UNET_MODULES,
    rank: Callable[[str], int] = lambda _: 4,
    folder: str = "peft",
) -> Craft:
    def craft(bench: Workbench) -> tuple[Path, Truth]:
        tensors, deltas = {}, {}
        for module in modules:
            down, up = bench.pair(module, rank(module))
            tensors |= {spell(module) + A_B[0]: down, spell(module) + A_B[1]: up}
            deltas[module] = factor(module) * product(down, up)
        path = bench.write(tensors, f"{folder}/adapter_model.safetensors")
        defaults = {"peft_type": "LORA", "r": 4, "target_modules": ["to_q"], "bias": "none"}
        path.with_name("adapter_config.json").write_text(json.dumps(defaults | dict(config)))
        return path.parent, bench.added(deltas)

    return craft


def dora(suffix: str, *, columns: bool = False, modules: tuple[str, ...] = (f"{ATTENTION}.to_q",)) -> Craft:
    """Craft a DoRA: W' = m (W + s BA) / |W + s BA|, alpha 2 for rank 4 where kohya names it."""
    kohya = suffix == ".dora_scale"

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        tensors, changes = {}, {}
        for module in modules:
            down, up = bench.pair(module)
            weight = bench.base(module)
            dims = [dim for dim in range(weight.ndim) if dim != (1 if columns else 0)]
            norm = weight.square().sum(dims, keepdim=True).sqrt()
            magnitude = (norm * (1 + bench.draw(*norm.shape).double())).float()
            if kohya:
                name = as_kohya(module)
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                tensors |= {f"{name}.alpha": torch.tensor(2.0), f"{name}{suffix}": magnitude}
            else:
                tensors |= {module + A_B[0]: down, module + A_B[1]: up}
                stored = magnitude.flatten() if weight.ndim == 2 else magnitude.transpose(0, 1)
                tensors[module + suffix] = stored
            changes[module] = ((0.5 if kohya else 1.0) * product(down, up), magnitude.double(), dims)

        def truth(scale: float) -> Tensors:
            merged = {}
            for module, (delta, magnitude, dims) in changes.items():
                weight = bench.base(module)
                moved = weight + scale * delta.reshape(weight.shape)
                # At scale 0 an adapter is taken away: the base, not magnitude * W / |W|.
                merged[f"{module}.weight"] = (
                    magnitude * moved / moved.square().sum(dims, keepdim=True).sqrt() if scale else weight
                )
            return merged

        return bench.write(tensors), truth

    return craft


def loha(*, dora_scale: bool = False) -> Craft:
    modules = (f"{ATTENTION}.to_q", "unet.down_blocks.0.resnets.1.conv1", f"{TEXT}.mlp.fc1")

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        tensors, deltas, magnitudes = {}, {}, {}
        for module in modules:
            out, columns = bench.base(module).flatten(1).shape
            parts = {
                "hada_w1_a": bench.draw(out, 3),
                "hada_w1_b": bench.draw(3, columns),
                "hada_w2_a": bench.draw(out, 3) * 8,
                "hada_w2_b": bench.draw(3, columns) * 8,
            }
            tensors |= {f"{as_kohya(module)}.{part}": tensor for part, tensor in parts.items()}
            tensors[f"{as_kohya(module)}.alpha"] = torch.tensor(1.5)
            first, second = (product(parts[f"hada_{w}_b"], parts[f"hada_{w}_a"]) for w in ("w1", "w2"))
            deltas[module] = 1.5 / 3 * first * second
            if dora_scale:
                norm = bench.base(module).flatten(1).norm(dim=1)
                magnitudes[module] = norm * 1.25
                shape = (-1, *(1 for _ in bench.base(module).shape[1:]))
                tensors[f"{as_kohya(module)}.dora_scale"] = magnitudes[module].float().reshape(shape)

        def truth(scale: float) -> Tensors:
            merged = bench.added(deltas)(scale)
            for module, magnitude in magnitudes.items() if scale else ():
                weight = merged[f"{module}.weight"]
                norm = weight.flatten(1).norm(dim=1)
                merged[f"{module}.weight"] = (magnitude / norm).reshape(
                    -1, *(1 for _ in weight.shape[1:])
                ) * weight
            return merged

        return bench.write(tensors), truth

    return craft


def loha_kernel(bench: Workbench) -> tuple[Path, Truth]:
    """A convolution's halves kept as kernels: (out, rank, 1, 1) and (rank, in, k, k)."""
    module = "unet.down_blocks.0.resnets.1.conv1"
    out, width, *kernel = bench.base(module).shape
    parts = {
        "hada_w1_a": bench.draw(out, 3, 1, 1),
        "hada_w1_b": bench.draw(3, width, *kernel),
        "hada_w2_a": bench.draw(out, 3, 1, 1) * 8,
        "hada_w2_b": bench.draw(3, width, *kernel) * 8,
    }
    name = ORIGINAL_NAMES[module]
    tensors = {f"{name}.{part}": tensor for part, tensor in parts.items()}
    tensors[f"{name}.alpha"] = torch.tensor(1.5)
    first, second = (product(parts[f"hada_{w}_b"], parts[f"hada_{w}_a"]) for w in ("w1", "w2"))
    return bench.write(tensors), bench.added({module: 1.5 / 3 * first * second})


def lokr_whole(dtype: torch.dtype, alpha: float) -> Craft:
    """Both factors whole, with the alpha that LyCORIS writes for them: it counts for nothing."""

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        w1, w2 = (bench.draw(4, 4) * 4).to(dtype), bench.draw(8, 8).to(dtype)
        name = as_kohya(f"{ATTENTION}.to_q")
        tensors = {f"{name}.lokr_w1": w1, f"{name}.lokr_w2": w2}
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
        return bench.write(tensors), bench.added({f"{ATTENTION}.to_q": kron(w1, w2)})

    return craft


def kron(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The Kronecker product of (a, b) and (c, d[, k, k]), index by index: (a c, b d[, k, k])."""
    kernels = second.double().reshape(*second.shape[:2], -1)
    result = torch.einsum("ab,cdk->acbdk", first.double(), kernels)
    return result.reshape(
        first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:]
    )


def lokr(spell: Callable[[str], str], *, alpha: float | None) -> Craft:
    """Craft all four kinds of factors: whole and whole, whole and product, product and product, a kernel."""
    conv = "unet.down_blocks.0.resnets.1.conv1"  # 16 -> 16, 3x3
    query, key, text = f"{ATTENTION}.to_q", f"{CROSS}.to_v", f"{TEXT}.mlp.fc1"  # 32x32, 32x80, 64x32

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        tensors, deltas = {}, {}

        def add(module: str, delta: torch.Tensor, *, rank: int | None, **parts: torch.Tensor) -> None:
            tensors.update({f"{spell(module)}.lokr_{part}": tensor for part, tensor in parts.items()})
            if alpha is not None:
                tensors[f"{spell(module)}.alpha"] = torch.tensor(alpha)
            # Where both factors are whole there is no rank, and alpha counts for nothing.
            deltas[module] = delta * (1 if rank is None or alpha is None else alpha / rank)

        w1, w2 = bench.draw(4, 4) * 4, bench.draw(8, 8)
        add(query, kron(w1, w2), rank=None, w1=w1, w2=w2)
        w1, a, b = bench.draw(4, 8) * 4, bench.draw(8, 2), bench.draw(2, 10) * 4
        add(key, kron(w1, product(b, a)), rank=2, w1=w1, w2_a=a, w2_b=b)
        c, d, a, b = bench.draw(8, 2), bench.draw(2, 4) * 6, bench.draw(8, 2), bench.draw(2, 8) * 6
        add(text, kron(product(d, c), product(b, a)), rank=2, w1_a=c, w1_b=d, w2_a=a, w2_b=b)
        w1, w2 = bench.draw(4, 4) * 4, bench.draw(4, 4, 3, 3)
        add(conv, kron(w1, w2), rank=None, w1=w1, w2=w2)
        return bench.write(tensors), bench.added(deltas)

    return craft


def lokr_convolution(bench: Workbench) -> tuple[Path, Truth]:
    """A kernel's factor as a product: (c, rank) @ (rank, d * k * k)."""
    module = "unet.down_blocks.0.resnets.1.conv1"
    w1, a, b = bench.draw(4, 4) * 4, bench.draw(4, 2), bench.draw(2, 4 * 9) * 6
    name = ORIGINAL_NAMES[module]
    tensors = {f"{name}.lokr_w1": w1, f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    delta = 0.5 * kron(w1, product(b, a).reshape(4, 4, 3, 3))
    return bench.write(tensors), bench.added({module: delta})


def write_tar(path: Path, members: Mapping[str, Path]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, member in members.items():
            archive.add(member, arcname=name)
    return path


def embedding_rows(count: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 32), generator=generator), torch.randn((count, 48), generator=generator)


def training_tar(bench: Workbench) -> tuple[Path, Truth]:
    lora, truth = pairs(
        lambda module: bare(as_processor(module)), LINEAR, suffixes=(".down.weight", ".up.weight")
    )(bench)
    rows = embedding_rows(2)
    embeddings = bench.write(dict(zip(("text_encoders_0", "text_encoders_1"), rows, strict=True)), "e.pti")
    names = bench.folder / "special_params.json"
    names.write_text('{"TOK": "<s0><s1>"}')
    members = {"lora.safetensors": lora, "embeddings.pti": embeddings, "special_params.json": names}
    return write_tar(bench.folder / "trained_model.tar", members), truth


def bundle(bench: Workbench) -> tuple[Path, Truth]:
    path, truth = pairs(as_kohya, LINEAR, alpha=lambda _: 2.0)(bench)
    one, two = embedding_rows(1), embedding_rows(2, seed=4)
    tensors = load_file(path) | {
        "bundle_emb.tile.clip_l": one[0],
        "bundle_emb.tile.clip_g": one[1],
        "bundle_emb.floor.clip_l": two[0],
        "bundle_emb.floor.clip_g": two[1],
    }
    return bench.write(tensors), truth


def embeddings(first: str, second: str, *, count: int = 2, name: str = "x.safetensors") -> Craft:
    return lambda bench: (
        bench.write(dict(zip((first, second), embedding_rows(count), strict=True)), name),
        None,
    )


def flat_embeddings(bench: Workbench) -> tuple[Path, None]:
    first, second = embedding_rows(1)
    return bench.write({"clip_l": first[0], "clip_g": second[0]}), None


def named_embeddings(bench: Workbench) -> tuple[Path, None]:
    (bench.folder / "special_params.json").write_text('{"TOK": "<tile><floor>"}')
    return embeddings("text_encoders_0", "text_encoders_1", name="embeddings.pti")(bench)


def zeros(name: str = "x.safetensors", **shapes: tuple[int, ...]) -> Craft:
    """Craft a file of zeros; `__` in a keyword stands for a dot."""
    return lambda bench: (
        bench.write({key.replace("__", "."): torch.zeros(shape) for key, shape in shapes.items()}, name),
        None,
    )


def half_pairs(module: str, out: int, width: int) -> Craft:
    return lambda bench: (
        bench.write(
            {
                f"{module}.lora_down.weight": torch.zeros(4, width),
                f"{module}.lora_up.weight": torch.zeros(out, 4),
            }
        ),
        None,
    )


def raw(content: bytes) -> Craft:
    def craft(bench: Workbench) -> tuple[Path, None]:
        path = bench.folder / "x.safetensors"
        path.write_bytes(content)
        return path, None

    return craft


def mixed(module: str) -> float:
    return 2.0 if "attn" in module else 8.0


HEADER_ALPHAS = {
    "lora_adapter_metadata": json.dumps(
        {
            f"unet.{field}": value
            for field, value in {
                "lora_alpha": 2,
                "r": 4,
                "alpha_pattern": {},
                "target_modules": [bare(module) for module in LINEAR],
            }.items()
        }
    )
}


def header_alphas(bench: Workbench) -> tuple[Path, Truth]:
    path, truth = pairs(str, LINEAR, suffixes=A_B, metadata=HEADER_ALPHAS)(bench)
    return path, lambda scale: truth(scale * 0.5)


def flat_columns(bench: Workbench) -> tuple[Path, Truth]:
    """Norms of input channels, (1, in, 1, 1), on convolutions whose changes are flat, (out, in k k)."""
    first, second = "unet.down_blocks.0.resnets.1.conv1", "unet.up_blocks.2.resnets.2.conv2"
    third = "unet.down_blocks.0.downsamplers.0.conv"
    tensors, deltas, magnitudes = {}, {}, {}

    def add(module: str, delta: torch.Tensor, **parts: torch.Tensor) -> None:
        weight = bench.base(module)
        deltas[module] = delta.reshape(weight.shape)
        norms = (weight + deltas[module]).square().sum((0, 2, 3), keepdim=True).sqrt()
        magnitudes[module] = norms * (1 + bench.draw(*norms.shape).double())
        name = as_kohya(module)
        tensors[f"{name}.dora_scale"] = magnitudes[module].float()
        tensors.update({f"{name}.{part.replace('__', '.')}": tensor for part, tensor in parts.items()})

    def size(module: str) -> tuple[int, int]:
        out, *columns = bench.base(module).shape
        return out, math.prod(columns)

    out, columns = size(first)
    down, up = bench.draw(4, columns), bench.draw(out, 4)
    add(first, product(down, up), lora_down__weight=down, lora_up__weight=up)
    out, columns = size(second)
    a, b, c, d = bench.draw(out, 2), bench.draw(2, columns), bench.draw(out, 2) * 8, bench.draw(2, columns)
    add(second, product(b, a) * product(d, c), hada_w1_a=a, hada_w1_b=b, hada_w2_a=c, hada_w2_b=d)
    out, columns = size(third)
    w1, w2 = bench.draw(4, 4) * 4, bench.draw(out // 4, columns // 4)
    add(third, kron(w1, w2), lokr_w1=w1, lokr_w2=w2)

    def truth(scale: float) -> Tensors:
        merged = bench.added(deltas)(scale)
        for module, magnitude in magnitudes.items() if scale else ():
            weight = merged[f"{module}.weight"]
            norms = weight.square().sum((0, 2, 3), keepdim=True).sqrt()
            merged[f"{module}.weight"] = magnitude * weight / norms
        return merged

    return bench.write(tensors), truth


def own_file(modules: tuple[str, ...]) -> Craft:
    """Craft what a network's own `save_lora_adapter` writes: no component's name, neither here nor in the header."""
    alphas = {"lora_alpha": 12, "alpha_pattern": {f"^{bare(modules[0])}": 2}}

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        metadata = {"lora_adapter_metadata": json.dumps({"r": 4, "use_rslora": False, **alphas})}
        path, _ = pairs(bare, modules, suffixes=A_B, metadata=metadata)(bench)
        tensors = load_file(path)
        factors = dict.fromkeys(modules, 3.0) | {modules[0]: 0.5}
        halves = {module: [tensors[bare(module) + suffix] for suffix in A_B] for module in modules}
        return path, bench.added({module: factors[module] * product(*halves[module]) for module in modules})

    return craft


def find_differing(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of `expected` under which `found` has another shape, dtype or value.

    For hundreds of small tensors: `torch.testing.assert_close` takes a millisecond for each.
    """
    return [
        name
        for name, tensor in expected.items()
        if (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype)
        or not torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6)
    ]


def assert_merged_by_hand(
    ready: ReadyPipeline, path: Path, truth: Truth, pristine: Tensors, scales: Iterable[float]
) -> None:
    """Hold a LoRA at each scale to the weights computed by hand; the last one stays in force."""
    ready.loras.load("x", path)
    for scale in scales:
        ready.loras.apply({"x": scale})
        found = read_weights(ready.base.pipeline, ready.base.components)
        for name, weight in truth(scale).items():
            torch.testing.assert_close(found.pop(name), weight.float(), rtol=1e-5, atol=1e-5)
        assert all(torch.equal(found[name], pristine[name]) for name in found)


def assert_taken_away(ready: ReadyPipeline, pristine: Tensors) -> None:
    """Take every LoRA away, and hold the weights to those before, bit for bit."""
    ready.loras.apply({})
    found = read_weights(ready.base.pipeline, ready.base.components)
    assert all(torch.equal(weight, pristine[name]) for name, weight in found.items())


def read_weights(pipeline: object, components: Iterable[str] = COMPONENTS) -> Tensors:
    """Return copies of all weights of the components that adapters change, by "component.name"."""
    return {
        f"{component}.{name}": tensor.clone()
        for component in components
        for name, tensor in getattr(pipeline, component).state_dict().items()
    }
