"""Every format of tests/adapter_formats.py, through the project's own path and against weights merged by hand."""

import copy
import re
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from tests.adapter_crafts import Workbench, embedding_rows, find_differing, read_weights
from tests.adapter_formats import EMBEDDING_FORMATS, LORA_FORMATS, render_table
from tests.flux_formats import FLUX_FORMATS
from tests.pace import assert_quick, processor_seconds
from tests.quick import first_quick
from tests.sd1_formats import SD1_EMBEDDINGS, SD1_FORMATS
from tests.tiny_sdxl import COMPONENTS
from tilemix.adapters.embedding_file import read_embedding
from tilemix.adapters.lora_file import read_lora
from tilemix.adapters.merging import merge
from tilemix.adapters.names import find_weights, spell_modules
from tilemix.errors import AdapterError, ModelFileError
from tilemix.modelfile.companions import PEFT_FILE
from tilemix.modelfile.inspection import read as inspect_file
from tilemix.modelfile.training_archive import is_archive, open_training
from tilemix.pipelines.loading import load_pipeline
from tilemix.weights import find_model

SCALES = (0.0, 0.35, 0.7, 1.0)


def named(formats, verdict):
    return [pytest.param(form, id=form.name) for form in formats if form.verdict == verdict]


@pytest.fixture(scope="module")
def ready(tiny_project):
    return load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def pristine(ready):
    return read_weights(ready.base.pipeline)


@pytest.fixture(scope="module")
def twin(ready):
    """A copy of the pipeline, for references."""
    return copy_plainly(ready.base.pipeline)


@pytest.fixture
def bench(pristine, tmp_path):
    return Workbench(pristine, tmp_path)


def copy_plainly(pipeline):
    """An independent copy of the pipeline, with diffusers' own attention."""
    copied = copy.deepcopy(pipeline)
    copied.unet.set_attn_processor(AttnProcessor2_0())
    return copied


def run_unet(unet):
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        return unet(
            torch.randn((1, 4, 16, 16), generator=generator),
            torch.tensor(500),
            encoder_hidden_states=torch.randn((1, 77, 80), generator=generator),
            added_cond_kwargs={"text_embeds": torch.ones((1, 48)), "time_ids": torch.full((1, 6), 256.0)},
        ).sample


def run(pipeline):
    """Return what the UNet and both text encoders answer to one fixed input."""
    unet = run_unet(pipeline.unet)
    generator = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        ids = torch.randint(0, 49405, (1, 77), generator=generator)
        first = pipeline.text_encoder(ids)
        second = pipeline.text_encoder_2(ids)
    return unet, first.last_hidden_state, second.last_hidden_state, second.text_embeds


def by_component(outputs):
    unet, first, second, pooled = outputs
    return [("unet", [unet]), ("text_encoder", [first]), ("text_encoder_2", [second, pooled])]


def assert_outputs_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def assert_pristine(pipeline, pristine):
    weights = read_weights(pipeline)
    assert list(weights) == list(pristine)
    assert [name for name in weights if not torch.equal(weights[name], pristine[name])] == []


def set_weights(pipeline, weights):
    with torch.no_grad():
        for name, tensor in weights.items():
            component, _, parameter = name.partition(".")
            getattr(pipeline, component).get_parameter(parameter).copy_(tensor)


@pytest.mark.parametrize("form", first_quick(named(LORA_FORMATS, "exact")))
def test_a_lora_of_every_format_answers_like_weights_merged_by_hand(ready, pristine, twin, bench, form):
    path, truth = form.craft(bench)
    set_weights(twin, pristine)
    plain = run(ready.base.pipeline)
    lora = ready.loras.load("x", path)
    assert (lora.embedding.tokens if lora.embedding else ()) == form.tokens
    for scale in SCALES:
        ready.loras.apply({"x": scale})
        expected = truth(scale)
        set_weights(twin, expected)
        found = read_weights(ready.base.pipeline)
        assert find_differing(found, {name: weight.float() for name, weight in expected.items()}) == []
        assert all(torch.equal(found[name], pristine[name]) for name in found.keys() - expected.keys())
        merged = run(ready.base.pipeline)
        assert_outputs_close(merged, run(twin))
        moved = {
            component: any(not torch.equal(ours, base) for ours, base in zip(after, before, strict=True))
            for (component, after), (_, before) in zip(by_component(merged), by_component(plain), strict=True)
        }
        changed = {name.partition(".")[0] for name in expected}
        assert moved == {component: bool(scale) and component in changed for component in COMPONENTS}
    ready.loras.apply({})
    assert_pristine(ready.base.pipeline, pristine)


@pytest.mark.slow
@pytest.mark.parametrize("form", [param for param in named(LORA_FORMATS, "exact") if param.values[0].peft])
def test_where_diffusers_own_loader_is_right_it_answers_the_same(ready, bench, form):
    """An independent reference: peft's wrappers."""
    path, _ = form.craft(bench)
    ready.loras.load("x", path)
    reference = copy_plainly(ready.base.pipeline)
    reference.load_lora_weights(str(path), adapter_name="user_lora")
    for scale in SCALES[1:]:
        ready.loras.apply({"x": scale})
        reference.set_adapters(["user_lora"], [scale])
        assert_outputs_close(run(ready.base.pipeline), run(reference))
    ready.loras.apply({})


@pytest.mark.slow
@pytest.mark.parametrize("form", named(LORA_FORMATS, "exact"))
def test_a_few_rows_at_a_time_give_the_same_weights(ready, bench, form, monkeypatch):
    """The tiny model's modules fit into the cache as a whole; the real ones do not."""
    monkeypatch.setattr("tilemix.adapters.merging.CACHED_NUMBERS", 100)
    path, truth = form.craft(bench)
    ready.loras.load("x", path)
    ready.loras.apply({"x": 0.7})
    found = read_weights(ready.base.pipeline)
    ready.loras.apply({})
    assert find_differing(found, {name: weight.float() for name, weight in truth(0.7).items()}) == []


CONFIGS = {
    "rank and alpha patterns": {
        "rank_pattern": {"attn1.to_q": 6},
        "alpha_pattern": {
            "attn1.to_q": 3.0,
            "ff.net.0.proj": 12.0,
            r"mid_block.*to_k": 7.0,
            r"down_blocks\.(1|2)\..*attn1\.to_(k|v)": 6.0,
            r"^up_blocks\.0\.attentions\.1\..*to_k": 5.0,
        },
    },
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True, "alpha_pattern": {"to_k": 2.0}},
}


def add_peft_adapter(pipeline, options):
    """Give a copy of the UNet an adapter of peft's own, with numbers in both halves; return it and its config."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["to_q", "to_k", "ff.net.0.proj"],
        init_lora_weights=False,
        **options,
    )
    torch.manual_seed(5)
    unet = copy_plainly(pipeline).unet
    unet.add_adapter(config, adapter_name="default")
    return unet, config


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("writer", ["peft", "diffusers", "network"])
def test_what_peft_and_diffusers_write_themselves_answers_as_it_did(ready, tmp_path, case, writer):
    """With the configurations as these libraries write them, the mixed alphas that diffusers reads wrong included."""
    unet, config = add_peft_adapter(ready.base.pipeline, CONFIGS[case])
    tensors = get_peft_model_state_dict(unet, adapter_name="default")
    if writer == "peft":
        config.save_pretrained(tmp_path)
        tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        path = tmp_path
    elif writer == "network":
        unet.save_lora_adapter(tmp_path)
        path = tmp_path / "pytorch_lora_weights.safetensors"
    else:
        type(ready.base.pipeline).save_lora_weights(
            tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=config.to_dict()
        )
        path = tmp_path / "pytorch_lora_weights.safetensors"
    plain = run_unet(ready.base.pipeline.unet)
    ready.loras.load("x", path)
    ready.loras.apply({"x": 1.0})
    ours = run_unet(ready.base.pipeline.unet)
    ready.loras.apply({})
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(ours, run_unet(unet), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", named(LORA_FORMATS, "exact"))
def test_the_inspector_finds_the_modules_and_tokens_that_the_loader_finds(ready, bench, form):
    path, _ = form.craft(bench)
    lora = ready.loras.load("x", path)
    with open_training(path) if is_archive(path) else nullcontext() as training:
        file = training.lora if training else path / PEFT_FILE if path.is_dir() else path
        found = inspect_file(file, hashes="none")
    assert found.kind == "lora"
    counts = {component: sum(layers.values()) for component, layers in found.modules.items()}
    assert counts == Counter(component for component, _ in lora.deltas)
    if training is None:
        assert found.tokens == (lora.embedding.tokens if lora.embedding else ())


OTHER_BASES = [
    pytest.param(form, told[1], id=form.name)
    for form in LORA_FORMATS
    if (
        told := re.match(
            r".+?: (?:made for )?(SD 1 or SD 2|SD \d|SDXL refiner|SDXL|Flux\.1)", form.message or ""
        )
    )
]


@pytest.mark.parametrize(("form", "base"), OTHER_BASES)
def test_the_inspector_names_the_base_that_the_loader_refuses(bench, form, base):
    path, _ = form.craft(bench)
    assert inspect_file(path, hashes="none").base_model == base


@pytest.mark.parametrize("form", named(LORA_FORMATS, "refused"))
def test_every_other_format_is_refused_by_name_and_the_pipeline_stays_usable(ready, pristine, bench, form):
    path, _ = form.craft(bench)
    with pytest.raises(ModelFileError) as caught:
        ready.loras.load("refused", path)
    assert str(caught.value) == form.message
    with pytest.raises(AdapterError, match="^adapter 'refused' is not loaded"):
        ready.loras.apply({"refused": 0.7})
    assert_pristine(ready.base.pipeline, pristine)


@pytest.mark.slow
@pytest.mark.parametrize("form", first_quick(named(EMBEDDING_FORMATS, "exact")))
def test_an_embedding_of_every_format_answers_like_diffusers_own_tokens(ready, pristine, bench, form):
    path, _ = form.craft(bench)
    rows = embedding_rows(len(form.tokens))
    file = read_embedding(path, ready.tokens.widths)
    assert file.tokens == form.tokens
    reference = copy_plainly(ready.base.pipeline)
    for number, row in zip(("", "_2"), rows, strict=True):
        reference.load_textual_inversion(
            row,
            token=list(form.tokens) if len(row) > 1 else form.tokens[0],
            text_encoder=getattr(reference, f"text_encoder{number}"),
            tokenizer=getattr(reference, f"tokenizer{number}"),
        )
    ready.tokens.install([(file, file.tokens)])
    assert ready.tokens.installed == form.tokens
    prompt = f"a tile {''.join(form.tokens)}, 50% red"
    with torch.inference_mode():
        ours, theirs = (pipeline.encode_prompt(prompt)[0::2] for pipeline in (ready.base.pipeline, reference))
    ready.tokens.install([])
    assert_outputs_close(ours, theirs)
    assert_pristine(ready.base.pipeline, pristine)


@pytest.mark.parametrize("form", named(EMBEDDING_FORMATS, "refused"))
def test_every_other_embedding_is_refused_by_name(ready, bench, form):
    path, _ = form.craft(bench)
    with pytest.raises(ModelFileError) as caught:
        read_embedding(path, ready.tokens.widths)
    assert str(caught.value) == form.message


def test_the_table_has_one_row_for_each_format():
    rows = [line for line in render_table().splitlines() if line.endswith((" exact |", " refused |"))]
    assert len(rows) == sum(
        map(len, (LORA_FORMATS, FLUX_FORMATS, SD1_FORMATS, EMBEDDING_FORMATS, SD1_EMBEDDINGS))
    )
    assert len(set(rows)) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("count", [9_000, 20_000])
def test_thousands_of_foreign_tensors_are_refused_in_a_fifth_of_a_second(ready, tmp_path, count):
    path = tmp_path / "x.safetensors"
    one = torch.zeros(1)
    save_file({f"x{i}.processor.to_q_lora.down.weight": one.clone() for i in range(count)}, path)

    def load() -> None:
        with pytest.raises(AdapterError, match=r"^x\.safetensors: (no place in this model|20000 tensors, )"):
            ready.loras.load("x", path)

    assert_quick(lambda: processor_seconds(load), 0.2)


MODULE_NAMES = (
    "unet.mid_block.attentions.0.proj_in",
    "lora_unet_middle_block_1_proj_in",
    "base_model.model.mid_block.attentions.0.proj_in",
    "text_encoder.encoder.layers.0.mlp.fc1",
    "bundle_emb.tile",
    "lora_unet_input_blocks_1_1_proj_in",
    "nowhere",
)
ENDINGS = (
    "lora_down.weight", "lora_up.weight", "lora_A.default.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lora_magnitude_vector", "diff",
    "clip_l", "clip_g", "",
)  # fmt: skip
SHAPES = (
    (),
    (1,),
    (4,),
    (4, 32),
    (32, 4),
    (32, 32),
    (64, 4),
    (4, 4),
    (8, 8),
    (32, 1),
    (1, 32),
    (4, 32, 3, 3),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    entries=st.dictionaries(
        st.tuples(st.sampled_from(MODULE_NAMES), st.sampled_from(ENDINGS)),
        st.sampled_from(SHAPES),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.int64)),
)
def test_any_tensors_are_loaded_completely_or_refused(ready, tmp_path_factory, entries, dtype):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    names = {f"{module}.{ending}".rstrip("."): shape for (module, ending), shape in entries.items()}
    save_file({name: torch.ones(shape, dtype=dtype) for name, shape in names.items()}, path)
    components = {name: getattr(ready.base.pipeline, name) for name in COMPONENTS}
    weights = find_weights(components)
    try:
        lora = read_lora(path, weights, spell_modules(components))
    except ModelFileError as error:
        assert "\n" not in str(error)  # noqa: PT017  one message for every format
        return
    assert lora.deltas
    for key, delta in lora.deltas.items():
        merged = torch.empty_like(weights[key])
        merge(merged, weights[key].detach(), [(delta, 0.5)])
        assert merged.isfinite().all()
