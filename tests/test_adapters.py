import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.adapter_crafts import ATTENTION, MODULES, ORIGINAL_NAMES, find_differing
from tests.adapter_crafts import read_weights as snapshot
from tests.pace import assert_quick, processor_seconds
from tests.tiny_sdxl import COMPONENTS, random_pairs
from tilemix.adapters import BaseWeights, LoraMerger, TokenInstaller
from tilemix.adapters.embedding_file import EmbeddingFile, read_embedding
from tilemix.adapters.merging import merge
from tilemix.adapters.peft_alpha import AlphaTable, PeftConfig
from tilemix.deltas import Dora, LowRank
from tilemix.errors import AdapterError, ModelFileError
from tilemix.pipelines.loading import load_pipeline
from tilemix.weights import find_model


@pytest.fixture(scope="module")
def ready(tiny_project):
    return load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32)


@pytest.fixture
def merger(ready, tiny_project):
    """A merger of its own over the shared pipeline, which the test must leave with the base's weights."""
    components = {name: getattr(ready.base.pipeline, name) for name in COMPONENTS}
    before = snapshot(ready.base.pipeline)
    merger = LoraMerger(
        components, {name: BaseWeights((tensors_of(tiny_project, name),)) for name in COMPONENTS}
    )
    yield merger
    merger.apply({})
    assert_same(snapshot(ready.base.pipeline), before)


def tensors_of(project: Path, component: str) -> Path:
    (path,) = (project / "weights" / "tiny" / component).glob("*.safetensors")
    return path


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def write(path: Path, tensors, metadata=None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def kohya(halves, *, alpha, names=ORIGINAL_NAMES):
    tensors = {}
    for module, name in names.items():
        tensors[f"{name}.lora_down.weight"] = halves[f"{module}.down"]
        tensors[f"{name}.lora_up.weight"] = halves[f"{module}.up"]
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha(module)))
    return tensors


def merge_by_hand(before, halves, scale, factor):
    """The truth: W + scale * factor * up @ down, for each module of `halves`."""
    expected = dict(before)
    for module in sorted({name.rpartition(".")[0] for name in halves}):
        down, up = halves[f"{module}.down"], halves[f"{module}.up"]
        delta = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(
            up.shape[0], *down.shape[1:]
        )
        expected[f"{module}.weight"] = before[f"{module}.weight"] + scale * factor(module) * delta
    return expected


def assert_close(found, expected):
    assert list(found) == list(expected)
    assert find_differing(found, expected) == []


def alpha_of(module: str) -> float:
    return 2.0 if "attn" in module else 8.0  # mixed, which diffusers 0.42.1 gets wrong


def test_header_alphas_are_baked_in_with_patterns_and_rslora(ready, merger, tmp_path):
    halves = random_pairs(ready.base.pipeline, MODULES)
    tensors = {
        f"{module}.lora_{letter}.weight": halves[f"{module}.{half}"]
        for module in MODULES
        for letter, half in (("A", "down"), ("B", "up"))
    }
    table = {
        "unet.r": 4,
        "unet.lora_alpha": 2,
        "unet.alpha_pattern": {
            "attn1.to_q": 12,
            r"down_blocks.*attn\d.to_[qk]": 6,
        },  # the first that fits counts
        "text_encoder.alpha_pattern": {"text_model.encoder.layers.1.mlp.fc1": 7},  # as older files spell it
        "text_encoder.lora_alpha": 3,
        "text_encoder.use_rslora": True,
    }

    def factor(module: str) -> float:
        if module.startswith("unet."):
            alpha = 12 if module.endswith("attn1.to_q") else 6 if module.endswith("attn2.to_k") else 2
            return alpha / 4
        if module == "text_encoder.encoder.layers.1.mlp.fc1":
            return 7 / math.sqrt(4)
        return 3 / math.sqrt(4) if module.startswith("text_encoder.") else 1.0

    before = snapshot(ready.base.pipeline)
    metadata = {"lora_adapter_metadata": json.dumps(table)}
    merger.load("rubber", write(tmp_path / "lora.safetensors", tensors, metadata))
    merger.apply({"rubber": 1.0})
    assert_close(snapshot(ready.base.pipeline), merge_by_hand(before, halves, 1.0, factor))


def test_two_loras_add_up_and_either_can_go(ready, merger, tmp_path):
    first, second = MODULES[:8], MODULES[4:12]
    halves = random_pairs(ready.base.pipeline, MODULES)
    for name, modules in (("first", first), ("second", second)):
        tensors = kohya(
            halves, alpha=lambda _: 4.0, names={module: ORIGINAL_NAMES[module] for module in modules}
        )
        merger.load(name, write(tmp_path / f"{name}.safetensors", tensors))
    before = snapshot(ready.base.pipeline)

    def expected(scales):
        result = dict(before)
        for (_, scale), modules in zip(scales, (first, second), strict=True):
            part = {name: tensor for name, tensor in halves.items() if name.rpartition(".")[0] in modules}
            result = merge_by_hand(result, part, scale, lambda _: 1.0)
        return result

    merger.apply({"first": 0.35, "second": 1.0})
    assert_close(snapshot(ready.base.pipeline), expected([("first", 0.35), ("second", 1.0)]))
    merger.apply({"second": 0.5})
    assert_close(snapshot(ready.base.pipeline), expected([("first", 0.0), ("second", 0.5)]))
    assert merger.applied == {"second": 0.5}


def dora_by_hand(weight, halves, module, scale, magnitude):
    """W' = m (W + s BA) / |W + s BA|, row by row, in fp64."""
    moved = weight.double() + scale * (halves[f"{module}.up"].double() @ halves[f"{module}.down"].double())
    return magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True)


def test_a_dora_beside_other_adapters_normalizes_the_base_and_its_own_change_alone(ready, merger, tmp_path):
    """The changes are added, so that no order of the adapters has to be remembered."""
    module = f"{ATTENTION}.to_q"
    before = snapshot(ready.base.pipeline)
    weight = before[f"{module}.weight"]
    halves = {
        name: random_pairs(ready.base.pipeline, [module], rank)
        for name, rank in (("d", 4), ("e", 3), ("l", 2))
    }
    magnitudes = {"d": weight.norm(dim=1) * 1.5, "e": weight.norm(dim=1) * 0.5}
    for name, pair in halves.items():
        tensors = {
            f"{Q}.lora_down.weight": pair[f"{module}.down"],
            f"{Q}.lora_up.weight": pair[f"{module}.up"],
        }
        if name in magnitudes:
            tensors[f"{Q}.dora_scale"] = magnitudes[name][:, None]
        merger.load(name, write(tmp_path / f"{name}.safetensors", tensors))
    scales = {"d": 0.7, "l": 0.5, "e": 1.0}
    expected = weight.double()
    for name, scale in scales.items():
        if name in magnitudes:
            merged = dora_by_hand(weight, halves[name], module, scale, magnitudes[name])
            expected = expected + merged - weight.double()
        else:
            delta = halves[name][f"{module}.up"].double() @ halves[name][f"{module}.down"].double()
            expected = expected + scale * delta
    for order in (["d", "l", "e"], ["e", "d", "l"]):
        merger.apply({})
        merger.apply({name: scales[name] for name in order})
        found = snapshot(ready.base.pipeline)[f"{module}.weight"]
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_a_dora_leaves_a_row_of_zeros_alone():
    """|W + BA| is 0 there, and 0 / 0 would be no number."""
    pair = LowRank(torch.zeros(2, 3), torch.ones(4, 2), 1.0)
    base = torch.ones(4, 3)
    base[1] = 0
    merged = torch.empty_like(base)
    merge(merged, base, [(Dora(pair, torch.full((4,), 2.0), by_column=False), 0.7)])
    expected = 2 * base / math.sqrt(3)
    torch.testing.assert_close(merged, expected)


def test_another_scale_is_merged_without_the_adapters_file(ready, merger, tmp_path):
    """It is parsed once; the file may even be gone."""
    halves = random_pairs(ready.base.pipeline, MODULES)
    path = write(tmp_path / "lora.safetensors", kohya(halves, alpha=alpha_of))
    before = snapshot(ready.base.pipeline)
    merger.load("rubber", path)
    merger.apply({"rubber": 0.35})
    path.unlink()
    merger.apply({"rubber": 1.0})
    expected = merge_by_hand(before, halves, 1.0, lambda module: alpha_of(module) / 4)
    assert_close(snapshot(ready.base.pipeline), expected)


def test_a_pair_kept_as_a_convolution_of_one_fits_a_linear_module_and_alpha_may_be_an_integer(
    ready, merger, tmp_path
):
    module = "unet.down_blocks.2.attentions.1.proj_in"
    halves = random_pairs(ready.base.pipeline, [module])
    name = ORIGINAL_NAMES[module]
    tensors = {
        f"{name}.lora_down.weight": halves[f"{module}.down"][:, :, None, None],
        f"{name}.lora_up.weight": halves[f"{module}.up"][:, :, None, None],
        f"{name}.alpha": torch.tensor(2),
    }
    before = snapshot(ready.base.pipeline)
    merger.load("rubber", write(tmp_path / "lora.safetensors", tensors))
    merger.apply({"rubber": 0.7})
    assert_close(snapshot(ready.base.pipeline), merge_by_hand(before, halves, 0.7, lambda _: 0.5))


def test_an_interrupted_merge_is_done_again_and_can_be_taken_away(ready, merger, tmp_path):
    halves = random_pairs(ready.base.pipeline, MODULES)
    path = write(tmp_path / "lora.safetensors", kohya(halves, alpha=alpha_of))
    deltas = merger.load("rubber", path).deltas
    before = snapshot(ready.base.pipeline)
    keys = list(deltas)

    class Cancelled(BaseException):
        pass

    class Bomb:
        sees_base, row_step = False, 1

        def make_adder(self, device, scale):
            def add(merged, base, rows):
                raise Cancelled

            return add

    good = deltas[keys[10]]
    deltas[keys[10]] = Bomb()
    with pytest.raises(Cancelled):
        merger.apply({"rubber": 0.7})
    assert merger.applied is None
    deltas[keys[10]] = good
    merger.apply({})
    assert_same(snapshot(ready.base.pipeline), before)
    deltas[keys[10]] = Bomb()
    with pytest.raises(Cancelled):
        merger.apply({"rubber": 0.7})
    deltas[keys[10]] = good
    merger.apply({"rubber": 0.7})
    assert_close(
        snapshot(ready.base.pipeline), merge_by_hand(before, halves, 0.7, lambda module: alpha_of(module) / 4)
    )


@pytest.fixture
def threads():
    """Two of torch's threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_any_number_of_threads_merges_the_same_bits_and_leaves_torch_its_own(
    ready, merger, tmp_path, threads, monkeypatch
):
    """All of torch's threads shared each short step: with another program on a core, real size took 34 s."""
    halves = random_pairs(ready.base.pipeline, MODULES)
    merger.load("rubber", write(tmp_path / "lora.safetensors", kohya(halves, alpha=alpha_of)))
    found = []
    for count, least in ((1, 0), (threads, 2**23), (threads, 0)):
        torch.set_num_threads(count)
        monkeypatch.setattr("tilemix.adapters.merging.NUMBERS_FOR_THREADS", least)
        merger.apply({"rubber": 0.7})
        found.append(snapshot(ready.base.pipeline))
        merger.apply({})
        assert torch.get_num_threads() == count
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_a_cancellation_while_threads_merge_ends_them_and_is_taken_away(
    ready, merger, tmp_path, threads, monkeypatch
):
    halves = random_pairs(ready.base.pipeline, MODULES)
    merger.load("rubber", write(tmp_path / "lora.safetensors", kohya(halves, alpha=alpha_of)))
    before = snapshot(ready.base.pipeline)
    monkeypatch.setattr("tilemix.adapters.merging.NUMBERS_FOR_THREADS", 0)
    merged = []

    def merge_slowly(weight, base, changes):
        merged.append(weight)
        time.sleep(0.02)
        merge(weight, base, changes)

    def cancel(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tilemix.adapters.merging.merge", merge_slowly)
    handler = signal.signal(signal.SIGALRM, cancel)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            merger.apply({"rubber": 0.7})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert 0 < len(merged) < len(halves) // 2  # no thread began another one
    assert merger.applied is None
    assert torch.get_num_threads() == threads
    monkeypatch.undo()
    merger.apply({})
    assert_same(snapshot(ready.base.pipeline), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 16), (24, 16, 3, 3)], ids=["linear", "convolution"])
def test_a_small_weight_is_merged_whole_as_a_large_one_is_in_parts(dtype, shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).half()
    down = torch.randn((4, *shape[1:]), generator=generator)
    up = torch.randn((24, 4, *[1] * (len(shape) - 2)), generator=generator)
    found = []
    for cached in (2**17, 16 * 9 * 5):  # the second: a few rows at a time
        for layout in (torch.contiguous_format, torch.channels_last):
            if layout == torch.channels_last and len(shape) == 2:
                continue
            monkeypatch.setattr("tilemix.adapters.merging.CACHED_NUMBERS", cached)
            weight = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
            merge(weight, base, [(LowRank(down, up, 0.5), 0.7)])
            found.append(weight)
    for weight in found[1:]:
        torch.testing.assert_close(weight, found[0], rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)
    exact = base.double() + 0.35 * (up.flatten(1).double() @ down.flatten(1).double()).view(shape)
    torch.testing.assert_close(found[0], exact.to(dtype), rtol=torch.finfo(dtype).eps * 2, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_merged_in_fp32_and_rounded_once(tiny_project, tmp_path, dtype):
    ready = load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), dtype)
    pristine = snapshot(ready.base.pipeline)
    halves = {name: tensor * 1e-2 for name, tensor in random_pairs(ready.base.pipeline, MODULES).items()}
    ready.loras.load("rubber", write(tmp_path / "lora.safetensors", kohya(halves, alpha=lambda _: 4.0)))
    ready.loras.apply({"rubber": 0.7})
    full = load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32)
    expected = merge_by_hand(snapshot(full.base.pipeline), halves, 0.7, lambda _: 1.0)
    found = snapshot(ready.base.pipeline)
    for module in MODULES:
        # On a CPU the text encoders stay in fp32.
        assert found[f"{module}.weight"].dtype == (dtype if module.startswith("unet") else torch.float32)
        rounded = expected[f"{module}.weight"].to(found[f"{module}.weight"].dtype)
        unequal = found[f"{module}.weight"] != rounded
        # The order of the sums may differ in fp32's last bit, which moves a value on the edge by one step.
        assert unequal.float().mean() < 0.01, module
    ready.loras.apply({})
    assert_same(snapshot(ready.base.pipeline), pristine)


def lora_of(names, shape=(4, 16)):
    return {name: torch.zeros(shape) for name in names}


Q = ORIGINAL_NAMES[f"{ATTENTION}.to_q"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[]", "lora_adapter_metadata: Expected `object`, got `array`"),
        ("{", "lora_adapter_metadata: Input data was truncated"),
        ("[" * 100_000, "lora_adapter_metadata: "),
        (
            '{"unet.lora_alpha": "8"}',
            "lora_adapter_metadata: Expected `float | null`, got `str` - at `$.lora_alpha`",
        ),
        ('{"unet.lora_alpha": NaN}', "lora_adapter_metadata: JSON is malformed"),
        ('{"unet.lora_alpha": -1}', "lora_adapter_metadata: alpha -1, expected 0 to 1e+06"),
        ('{"unet.lora_alpha": 1%s}' % ("0" * 400), "lora_adapter_metadata: Number out of range"),
        ('{"unet.lora_alpha": 1e7}', "lora_adapter_metadata: alpha 1e+07, expected 0 to 1e+06"),
        ('{"unet.peft_type": "LOHA"}', "lora_adapter_metadata: peft_type 'LOHA', expected 'LORA'"),
        (
            '{"unet.fan_in_fan_out": true}',
            "lora_adapter_metadata: fan_in_fan_out is set, which is not supported",
        ),
        (
            '{"unet.alpha_pattern": {"to_z": 8}}',
            "lora_adapter_metadata: alpha_pattern 'to_z' fits no module of the file",
        ),
        ('{"unet.alpha_pattern": {"[": 8}}', "lora_adapter_metadata: alpha_pattern '[': "),
        (
            '{"use_dora": true, "lora_alpha": 8}',
            f"lora_adapter_metadata: use_dora is set, but {ATTENTION}.to_q has no magnitude",
        ),
        (
            '{"transformer.lora_alpha": 8}',
            "lora_adapter_metadata: configures 'transformer', but the tensors are for 'unet'",
        ),
        # Would take the age of the universe.
        (
            '{"unet.alpha_pattern": {"(.+)+x": 8}}',
            "lora_adapter_metadata: alpha_pattern '(.+)+x', expected at most",
        ),
        (
            '{"unet.alpha_pattern": {".*.*.*.*": 8}}',
            "lora_adapter_metadata: alpha_pattern '.*.*.*.*', expected at",
        ),
    ],
)
def test_header_alphas_that_make_no_sense_are_refused(ready, merger, tmp_path, table, message):
    halves = random_pairs(ready.base.pipeline, [f"{ATTENTION}.to_q"])
    tensors = {
        f"{ATTENTION}.to_q.lora_A.weight": halves[f"{ATTENTION}.to_q.down"],
        f"{ATTENTION}.to_q.lora_B.weight": halves[f"{ATTENTION}.to_q.up"],
    }
    with pytest.raises(AdapterError) as caught:
        merger.load("x", write(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": table}))
    assert str(caught.value).startswith(f"x.safetensors: {message}")
    assert "\n" not in str(caught.value)


def test_alpha_tensors_go_before_the_alphas_of_the_header(ready, merger, tmp_path):
    module = f"{ATTENTION}.to_q"
    halves = random_pairs(ready.base.pipeline, [module])
    tensors = {
        f"{module}.lora_A.weight": halves[f"{module}.down"],
        f"{module}.lora_B.weight": halves[f"{module}.up"],
        f"{module}.alpha": torch.tensor(8.0),
    }
    table = {"lora_adapter_metadata": '{"unet.lora_alpha": 1, "unet.alpha_pattern": {"to_q": 3}}'}
    before = snapshot(ready.base.pipeline)
    merger.load("x", write(tmp_path / "x.safetensors", tensors, table))
    merger.apply({"x": 1.0})
    assert_close(snapshot(ready.base.pipeline), merge_by_hand(before, halves, 1.0, lambda _: 2.0))


def test_alphas_named_for_hundreds_of_modules_are_found_quickly():
    modules = [f"down_blocks.{i}.attentions.{j}.to_q" for i in range(40) for j in range(25)]
    patterns = {module: float(place) for place, module in enumerate(modules)} | {r"down_blocks.*to_[qk]": 1.0}
    table = AlphaTable("x", {"unet": PeftConfig(lora_alpha=1.0, alpha_pattern=patterns)})

    def find() -> None:
        assert [table.factor(("unet", module), 1) for module in modules] == list(range(1000))

    assert_quick(lambda: processor_seconds(find), 1)
    table.refuse_unused()  # the last pattern fits too, though an earlier one counts


def test_a_file_that_says_that_it_is_for_another_base_is_quoted(merger, tmp_path):
    path = write(tmp_path / "x", {"surprise": torch.zeros(1)}, {"modelspec.architecture": "lumina-2/lora"})
    with pytest.raises(AdapterError) as caught:
        merger.load("x", path)
    assert str(caught.value) == (
        "x: no place in this model for 1 of its tensors: 'surprise'; the file says that it is for 'lumina-2/lora'"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "adapter_config.json: Input data was truncated"),
        ('{"peft_type": "LOHA"}', "adapter_config.json: peft_type 'LOHA', expected 'LORA'"),
        (" " * (2**20 + 1), "adapter_config.json: more than 1048576 bytes"),
        (
            '{"layer_replication": [[0, 4]]}',
            "adapter_config.json: layer_replication is set, which is not supported",
        ),
        (
            '{"alora_invocation_tokens": [5]}',
            "adapter_config.json: alora_invocation_tokens is set, which is not supported",
        ),
        ('{"lora_bias": true}', "adapter_config.json: lora_bias is set, which is not supported"),
        (
            '{"lora_alpha": 8, "alpha_pattern": {"to_z": 2}}',
            "adapter_config.json: alpha_pattern 'to_z' fits no module",
        ),
    ],
)
def test_a_peft_folder_whose_configuration_makes_no_sense_is_refused(
    ready, merger, tmp_path, config, message
):
    module = f"{ATTENTION}.to_q"
    halves = random_pairs(ready.base.pipeline, [module])
    name = f"base_model.model.{module.removeprefix('unet.')}"
    tensors = {
        f"{name}.lora_A.weight": halves[f"{module}.down"],
        f"{name}.lora_B.weight": halves[f"{module}.up"],
    }
    path = write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(config)
    for place in (tmp_path, path):  # the folder or the file in it
        with pytest.raises(AdapterError) as caught:
            merger.load("x", place)
        assert str(caught.value).startswith(message)


def test_another_file_under_the_same_name_is_merged_at_the_same_scale(ready, merger, tmp_path):
    before = snapshot(ready.base.pipeline)
    first = random_pairs(ready.base.pipeline, MODULES[:3])
    second = {name: tensor * 2 for name, tensor in first.items()}
    for halves in (first, second):
        names = {module: ORIGINAL_NAMES[module] for module in MODULES[:3]}
        path = write(tmp_path / "x.safetensors", kohya(halves, alpha=lambda _: 4.0, names=names))
        merger.load("x", path)
        merger.apply({"x": 0.7})
        assert_close(snapshot(ready.base.pipeline), merge_by_hand(before, halves, 0.7, lambda _: 1.0))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "x.safetensors: no LoRA tensors in it"),
        (
            {
                f"{Q}.lora_down.weight": torch.zeros(4, 32),
                f"{Q}.lora_up.weight": torch.zeros(32, 4),
                f"{Q}.alpha": torch.ones(4),
            },
            "x.safetensors: alpha of unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q "
            "has the shape (4,), expected one number",
        ),
        (
            {
                f"{Q}.lora_down.weight": torch.zeros(4, 32),
                f"{Q}.lora_up.weight": torch.zeros(32, 4),
                f"{Q}.alpha": torch.tensor(-2e9),
            },
            "x.safetensors: alpha of unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q is -2e+09, "
            "expected at most 1e+06",
        ),
        (
            {
                f"{Q}.lora_down.weight": torch.zeros(4, 32, dtype=torch.int8),
                f"{Q}.lora_up.weight": torch.zeros(32, 4, dtype=torch.int8),
            },
            "x.safetensors: 'down' of unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q "
            "is int8, expected a float of 16 bits or more",
        ),
        (
            {f"{Q}.lora_down.weight": torch.zeros(4, 32)},
            "x.safetensors: incomplete LoRA for unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q: "
            "only 'down'",
        ),
        (
            {f"{Q}.lora_down.weight": torch.zeros(4, 640), f"{Q}.lora_up.weight": torch.zeros(640, 4)},
            "x.safetensors: made for another model: "
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q is 640x640 in the file, "
            "32x32 in this model",
        ),
        (
            {
                f"{Q}.lora_down.weight": torch.full((4, 32), torch.nan),
                f"{Q}.lora_up.weight": torch.zeros(32, 4),
            },
            "x.safetensors: 'down' of unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q "
            "holds a number that is not finite",
        ),
        (
            {f"{Q}.lora_down.weight": torch.zeros(4, 32), f"{Q}.lora_up.weight": torch.zeros(32, 8)},
            "x.safetensors: the LoRA for unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q "
            "does not fit together: down (4, 32), up (32, 8)",
        ),
        (
            lora_of(["lora_unet_input_blocks_99_1_proj_in.lora_down.weight", "surprise"]),
            "x.safetensors: no place in this model for 2 of its tensors: "
            "'lora_unet_input_blocks_99_1_proj_in.lora_down.weight' and 'surprise'",
        ),
        (
            lora_of([f"key_{i}" for i in range(7)]),
            "x.safetensors: no place in this model for 7 of its tensors: "
            "'key_0', 'key_1', 'key_2', 'key_3' and 'key_4'",
        ),
        (
            {f"{Q}.hada_w1_a": torch.zeros(32, 4), f"{Q}.hada_w1_b": torch.zeros(4, 32)},
            "x.safetensors: incomplete LoHa for unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q: "
            "only 'hada_w1_a' and 'hada_w1_b'",
        ),
        (
            {f"{Q}.lokr_w1": torch.zeros(4, 4), f"{Q}.lokr_w2_b": torch.zeros(2, 8)},
            "x.safetensors: incomplete LoKr for unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q: "
            "only 'lokr_w1' and 'lokr_w2_b'",
        ),
        (
            {f"{Q}.dora_scale": torch.zeros(32, 1)},
            "x.safetensors: incomplete LoRA for unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q: "
            "only 'dora_scale'",
        ),
        (
            {
                f"{Q}.lora_down.weight": torch.zeros(4, 32),
                f"{Q}.lora_up.weight": torch.zeros(32, 4),
                f"{Q}.lokr_w1": torch.zeros(4, 4),
            },
            "x.safetensors: unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q is changed in more "
            "than one way: 'down', 'lokr_w1' and 'up'",
        ),
        (
            {
                f"{Q}.lora_down.weight": torch.zeros(4, 32),
                f"{Q}.lora_up.weight": torch.zeros(32, 4),
                f"{Q}.dora_scale": torch.zeros(16, 1),
            },
            "x.safetensors: 'dora_scale' of unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q "
            "is 16x1, expected one number for each of 32 rows",
        ),
        (
            {f"{Q}.lokr_w1": torch.zeros(4, 4), f"{Q}.lokr_w2": torch.zeros(4, 4)},
            "x.safetensors: made for another model: "
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q is 16x16 in the file, "
            "32x32 in this model",
        ),
        (
            {
                f"{Q}.lora_down.weight": torch.zeros(4, 32),
                f"unet.{ATTENTION.removeprefix('unet.')}.to_q.lora_A.weight": torch.zeros(4, 32),
            },
            "x.safetensors: 'lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight' and "
            "'unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight' are for the same weight",
        ),
    ],
)
def test_a_file_that_cannot_be_used_completely_is_refused(merger, tmp_path, tensors, message):
    with pytest.raises(AdapterError) as caught:
        merger.load("x", write(tmp_path / "x.safetensors", tensors))
    assert str(caught.value) == message
    with pytest.raises(AdapterError, match="adapter 'x' is not loaded; loaded: none"):
        merger.apply({"x": 0.7})


def test_learned_tokens_are_ids_49408_and_49409_on_both_encoders(ready, tmp_path):
    rows = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}
    before = snapshot(ready.base.pipeline)
    tokenizers = [ready.base.pipeline.tokenizer, ready.base.pipeline.tokenizer_2]
    plain = [tokenizer("a photo of a cat").input_ids for tokenizer in tokenizers]
    path = write(tmp_path / "tokens.safetensors", rows)
    file = read_embedding(path, ready.tokens.widths, token_count=2)
    ready.tokens.install([(file, ["<s0>", "<s1>"])])
    for encoder, tokenizer, key in (
        (ready.base.pipeline.text_encoder, ready.base.pipeline.tokenizer, "clip_l"),
        (ready.base.pipeline.text_encoder_2, ready.base.pipeline.tokenizer_2, "clip_g"),
    ):
        matrix = encoder.get_input_embeddings().weight
        assert matrix.shape[0] == 49410
        assert torch.equal(matrix[49408:], rows[key])
        for text in (
            "<s0><s1>",
            "ohwx_rubber_tile <s0><s1>, 50% red",
            "(<s0><s1>)",
            "<s0><s1>50% red",
            "x<s0> <s1>",
        ):
            ids = tokenizer(text).input_ids
            place = ids.index(49408)
            assert ids[place : place + 2] == [49408, 49409], text
        assert tokenizer("a photo of a cat").input_ids == plain[0]
    # Installed again, with other values: replaced, not refused.
    other = read_embedding(
        write(tmp_path / "pti", {"text_encoders_0": torch.ones(2, 32), "text_encoders_1": torch.ones(2, 48)}),
        ready.tokens.widths,
        token_count=2,
    )
    ready.tokens.install([(other, ["<s0>", "<s1>"])])
    assert torch.equal(
        ready.base.pipeline.text_encoder.get_input_embeddings().weight[49408:], torch.ones(2, 32)
    )
    ready.tokens.install([])
    assert_same(snapshot(ready.base.pipeline), before)
    assert [
        t("a photo of a cat").input_ids
        for t in (ready.base.pipeline.tokenizer, ready.base.pipeline.tokenizer_2)
    ] == plain
    assert len(ready.base.pipeline.tokenizer("<s0>").input_ids) > 3  # no token any more: spelled out


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"clip_l": torch.zeros(3, 32), "clip_g": torch.zeros(3, 48)},
            "x.safetensors: 3 rows for 2 tokens",
        ),
        (
            {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(3, 48)},
            "x.safetensors: 2 rows for one text encoder and 3 for the other",
        ),
        (
            {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(48)},
            "x.safetensors: the rows of text_encoder_2 are 48, expected tokens x width",
        ),
        (
            {"clip_l": torch.zeros(2, 64), "clip_g": torch.zeros(2, 48)},
            "x.safetensors: made for another model, 64 and 48 wide; this model's text encoders are 32 and 48 wide",
        ),
        (
            {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48), "clip_h": torch.zeros(2, 48)},
            "x.safetensors: holds 'clip_g', 'clip_h' and 'clip_l'; "
            "expected 'clip_l with clip_g' or 'text_encoders_0 with text_encoders_1'",
        ),
        (
            {"clip_l": torch.zeros(2, 32), "clip_g": torch.full((2, 48), torch.inf)},
            "x.safetensors: the rows of text_encoder_2 hold a number that is not finite",
        ),
    ],
)
def test_an_embedding_that_does_not_fit_is_refused(tmp_path, tensors, message):
    with pytest.raises(AdapterError) as caught:
        read_embedding(
            write(tmp_path / "x.safetensors", tensors),
            {"text_encoder": 32, "text_encoder_2": 48},
            token_count=2,
        )
    assert str(caught.value) == message


def test_a_token_that_is_a_word_or_named_twice_is_refused_and_nothing_changes(ready, tmp_path):
    path = write(tmp_path / "t", {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)})
    file = read_embedding(path, ready.tokens.widths, token_count=2)
    before, tokenizer = snapshot(ready.base.pipeline), ready.base.pipeline.tokenizer
    with pytest.raises(AdapterError, match="^placeholder token 'cat</w>' is already a word of tokenizer$"):
        ready.tokens.install([(file, ["cat</w>", "<s1>"])])
    with pytest.raises(AdapterError, match="^placeholder token '<s0>' is named twice$"):
        ready.tokens.install([(file, ["<s0>", "<s0>"])])
    large = {
        encoder: torch.full((1, width), 1e300, dtype=torch.float64)
        for encoder, width in ready.tokens.widths.items()
    }
    with pytest.raises(
        AdapterError, match="^t: the row of <s0> in text_encoder is beyond what float32 holds$"
    ):
        ready.tokens.install([(EmbeddingFile("t", large, ("<s0>",)), ["<s0>"])])
    assert_same(snapshot(ready.base.pipeline), before)
    assert ready.base.pipeline.tokenizer is tokenizer


@pytest.mark.slow
def test_a_tokenizer_of_another_size_than_its_encoder_gets_no_tokens(tiny_project, tmp_path):
    base = load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32).base
    pipeline = base.pipeline
    pipeline.tokenizer_2.add_tokens(["<more>"])
    before = snapshot(pipeline)
    tokens = TokenInstaller(base)
    message = "^tokenizer_2 has 49409 words, but text_encoder_2 has 49408 rows; expected the same number$"
    with pytest.raises(AdapterError, match=message):
        tokens.install([(tokens_file(tmp_path / "a", 1.0), ["<new>"])])
    assert_same(snapshot(pipeline), before)
    assert "<new>" not in pipeline.tokenizer.get_vocab()
    tokens.install([])
    assert tokens.installed == ()


def tokens_file(path, value, count=1):
    rows = {"clip_l": torch.full((count, 32), value), "clip_g": torch.full((count, 48), value)}
    return read_embedding(write(path, rows), {"text_encoder": 32, "text_encoder_2": 48})


@pytest.mark.slow
def test_a_token_of_two_files_is_the_later_ones(ready, tmp_path, caplog):
    before = snapshot(ready.base.pipeline)
    first, second = (tokens_file(tmp_path / name, value, 2) for name, value in (("a", 1.0), ("b", 2.0)))
    ready.tokens.install([(first, ["<s0>", "<s1>"]), (second, ["<s1>", "<s2>"])])
    assert ready.tokens.installed == ("<s0>", "<s1>", "<s2>")
    assert caplog.messages == ["b: token <s1> replaces the one of a"]
    for encoder in (ready.base.pipeline.text_encoder, ready.base.pipeline.text_encoder_2):
        assert encoder.get_input_embeddings().weight[49408:, 0].tolist() == [1.0, 2.0, 2.0]
    ready.tokens.install([])
    assert ready.tokens.installed == ()
    assert_same(snapshot(ready.base.pipeline), before)


@pytest.mark.slow
def test_a_token_that_the_base_brings_is_replaced_and_comes_back(tiny_project, tmp_path):
    """A base may have been saved with learned tokens in it."""
    base = load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32).base
    pipeline = base.pipeline
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        tokenizer.add_tokens(["<s0>"])
        matrix = encoder.get_input_embeddings().weight.data
        encoder.get_input_embeddings().weight = torch.nn.Parameter(torch.cat([matrix, matrix[:1]]), False)
    before = snapshot(pipeline)
    tokens = TokenInstaller(base)
    new = tokens_file(tmp_path / "a", 5.0, 2)
    for _ in range(2):
        tokens.install([(new, ["<new>", "<s0>"])])
        weight = pipeline.text_encoder.get_input_embeddings().weight
        assert weight.shape[0] == 49410
        assert weight[49408:].eq(5).all()
        assert pipeline.tokenizer("<s0><new>").input_ids[1:3] == [49408, 49409]
        tokens.install([])
        assert_same(snapshot(pipeline), before)
        assert pipeline.tokenizer("<s0>").input_ids[1] == 49408


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"bundle_emb.tile.clip_l": torch.zeros(1, 32)},
            "x.safetensors: the bundled embedding 'tile' has clip_l alone",
        ),
        (
            {
                "bundle_emb.a.b.clip_l": torch.zeros(1, 32), "bundle_emb.a.b.clip_g": torch.zeros(1, 48),
                "bundle_emb.a b.clip_l": torch.zeros(1, 32), "bundle_emb.a b.clip_g": torch.zeros(1, 48),
            },
            "x.safetensors: the bundled embedding '<a_b>' cannot be a token's name, or two give the same one; "
            "name the tokens with --tokens",
        ),
        (
            {"bundle_emb.tile.clip_l": torch.zeros(2, 32), "bundle_emb.tile.clip_g": torch.zeros(1, 48)},
            "x.safetensors: 2 rows for one text encoder and 1 for the other",
        ),
        (
            {
                "bundle_emb.a.clip_l": torch.zeros(32), "bundle_emb.a.clip_g": torch.zeros(48),
                "bundle_emb.b.clip_l": torch.zeros(32), "bundle_emb.b.clip_g": torch.zeros(64),
            },
            "x.safetensors: the bundled embeddings have different widths",
        ),
        (
            {"bundle_emb.a.clip_l": torch.full((32,), torch.nan), "bundle_emb.a.clip_g": torch.zeros(48)},
            "x.safetensors: the rows of text_encoder hold a number that is not finite",
        ),
    ],
)  # fmt: skip
def test_a_bundle_that_is_not_whole_is_refused(merger, tmp_path, tensors, message):
    pair = {f"{Q}.lora_down.weight": torch.zeros(4, 32), f"{Q}.lora_up.weight": torch.zeros(32, 4)}
    with pytest.raises(AdapterError) as caught:
        merger.load("x", write(tmp_path / "x.safetensors", tensors | pair))
    assert str(caught.value) == message


def test_a_file_of_bundled_embeddings_alone_is_no_lora(merger, tmp_path):
    tensors = {"bundle_emb.a.clip_l": torch.zeros(32), "bundle_emb.a.clip_g": torch.zeros(48)}
    with pytest.raises(AdapterError, match="^x.safetensors: no LoRA tensors in it$"):
        merger.load("x", write(tmp_path / "x.safetensors", tensors))


def test_a_file_that_is_no_safetensors_is_refused_by_what_it_is(merger, tmp_path):
    path = tmp_path / "page.safetensors"
    path.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    with pytest.raises(ModelFileError, match="page.safetensors: an HTML page, expected safetensors"):
        merger.load("x", path)


def test_the_pooled_vector_stands_at_the_last_learned_token(ready, tmp_path):
    """SDXL publishes eos_token_id 2, so transformers pools at the highest token id: the learned <s1>, not EOS."""
    file = read_embedding(
        write(tmp_path / "t", {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}),
        ready.tokens.widths,
        token_count=2,
    )
    installer = TokenInstaller(ready.base)
    installer.install([(file, ["<s0>", "<s1>"])])
    tokenizer, encoder = ready.base.pipeline.tokenizer_2, ready.base.pipeline.text_encoder_2
    ids = tokenizer("a <s0><s1> tile", padding="max_length", max_length=77, return_tensors="pt").input_ids
    place = ids[0].tolist().index(49409)
    with torch.inference_mode():
        pooled = encoder(ids).text_embeds[0]
        last = encoder(ids).last_hidden_state[0]
        expected = encoder.text_projection(last[place])
    installer.install([])
    torch.testing.assert_close(pooled, expected)
