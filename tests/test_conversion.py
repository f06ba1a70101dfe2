"""Pickled files become safetensors without anything in them being run; hostile ones cost a line."""

import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tilemix.cli import main
from tilemix.conversion.child import Job, convert_file
from tilemix.conversion.contents import DTYPES, find_contents
from tilemix.conversion.convert import convert
from tilemix.conversion.pickled import read_pickled
from tilemix.errors import ModelFileError
from tilemix.modelfile.hashes import compute_hashes
from tilemix.modelfile.header import read_header
from tilemix.modelfile.kinds import recognize

LAST = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.arange(6.0).view(2, 3),
    "model.diffusion_model.out.2.bias": torch.tensor([1.0, 2.0]),
    "first_stage_model.decoder.conv_in.weight": torch.ones(2, 2),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77),
}
EMA = {
    "model_ema.diffusion_modelinput_blocks00weight": torch.arange(6.0).view(2, 3) + 0.5,
    "model_ema.diffusion_modelout2bias": torch.tensor([3.0, 4.0]),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(7),
}


class ModelCheckpoint:
    """What Lightning puts into a checkpoint as a key."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
ModelCheckpoint.__qualname__ = "ModelCheckpoint"


@pytest.fixture
def lightning(monkeypatch):
    """Make Lightning's class picklable, without Lightning."""
    module = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def training():
    """A training checkpoint as Lightning saves it."""
    return {
        "state_dict": OrderedDict(LAST | EMA),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(50), "step": 3}}, "param_groups": []}],
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}},
        "global_step": 470000,
    }


def run(path, **options):
    """Convert in this process, without its limits."""
    target = path.with_suffix(".safetensors")
    done = convert_file(Job(str(path), str(target), **options))
    return done, load_file(target)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items()
    )


@pytest.mark.slow
@pytest.mark.usefixtures("lightning")
def test_a_training_checkpoint_keeps_the_last_weights_and_says_what_is_left_out(tmp_path, caplog, capsys):
    path = tmp_path / "final.ckpt"
    torch.save(training(), path)
    caplog.set_level("INFO")
    assert main(["weights", "convert", str(path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'final.safetensors'}\n"
    assert same(load_file(tmp_path / "final.safetensors"), LAST)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "kept: checkpoint, 4 tensors, the last weights"
    assert "left out: optimizer_states: 1 tensors, 200 B" in lines
    assert "left out: global_step" in lines
    assert "left out: EMA weights: 4 tensors, 44 B" in lines
    assert (tmp_path / "final.safetensors").stat().st_mode == path.stat().st_mode
    sidecar = json.loads((tmp_path / "final.safetensors.metadata.json").read_text())
    assert sidecar["hash_sha256"] == compute_hashes(tmp_path / "final.safetensors").sha256
    assert sidecar["converted_from"]["sha256"] == compute_hashes(path).sha256
    assert main(["weights", "convert", str(path)]) == 1
    assert "final.safetensors: is there already" in capsys.readouterr().err


@pytest.mark.usefixtures("lightning")
def test_ema_weights_take_the_places_of_the_last_ones(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(training(), path)
    done, found = run(path, keep="ema")
    names = list(LAST)[:2]
    assert same(found, LAST | dict(zip(names, list(EMA.values())[:2], strict=True)))
    assert done.weights == "ema"
    assert ("last weights", 2) in {(part.name, part.tensors) for part in done.dropped}


def test_rounding_leaves_integers_and_refuses_to_overflow(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(LAST, path)
    _, found = run(path, dtype="fp16")
    assert {t.dtype for n, t in found.items() if not n.endswith("ids")} == {torch.float16}
    assert found[list(LAST)[3]].dtype == torch.int64
    torch.save(LAST | {"out": torch.tensor([1e5])}, path)
    with pytest.raises(ModelFileError, match=r"x.pt: 'out' holds numbers beyond the range of fp16"):
        run(path, dtype="fp16")


@pytest.mark.parametrize("legacy", [False, True])
def test_shared_and_strided_tensors_are_stored_one_by_one(tmp_path, legacy):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {
        "a": whole,
        "b": whole,
        "row": whole[1],
        "turned": whole.t(),
        "grad": nn.Parameter(whole.clone()),
    }
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
    _, found = run(tmp_path / "x.bin")
    assert same(found, {name: tensor.detach() for name, tensor in tensors.items()})


def test_single_numbers_of_every_dtype_stay_exact(tmp_path):
    tensors = {f"{dtype}.alpha": torch.tensor(1.5).to(dtype) for dtype in DTYPES}
    torch.save(tensors, tmp_path / "x.pt")
    _, found = run(tmp_path / "x.pt")
    assert same(found, tensors)
    assert all(tensor.shape == () for tensor in found.values())


@pytest.mark.parametrize("name", ["model", "module", "model_state_dict", "params", "params_ema", "ema"])
def test_a_training_file_gives_the_one_set_of_tensors_beside_its_optimizer(tmp_path, name):
    held = {name: LAST, "optimizer": {"state": {0: torch.zeros(50)}}, "epoch": 1, "loss": torch.tensor(0.5)}
    torch.save(held, tmp_path / "x.pt")
    done, found = run(tmp_path / "x.pt")
    assert same(found, LAST)
    assert done.container == name
    assert [(part.name, part.tensors) for part in done.dropped] == [
        ("optimizer", 1),
        ("epoch", 0),
        ("loss", 1),
    ]


def test_an_error_names_the_sets_of_tensors_found_and_known():
    with pytest.raises(
        ModelFileError, match=r"x: holds tensors under model, ema, .* one of state_dict, model_state"
    ):
        find_contents("x", {"ema": LAST, "model": LAST, "optimizer": {}})
    with pytest.raises(
        ModelFileError, match=r"x: holds no tensors by name, but theirs, epoch; .* one of state_dict"
    ):
        find_contents("x", {"theirs": LAST, "epoch": 1})


@pytest.mark.slow
def test_the_content_counts_not_the_name(tmp_path, caplog, capsys):
    path = tmp_path / "x.safetensors"
    torch.save({"model": LAST}, path)
    before = path.read_bytes()
    caplog.set_level("INFO")
    assert main(["weights", "convert", str(path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.converted.safetensors'}\n"
    assert "taken from: model" in [record.getMessage() for record in caplog.records]
    assert same(load_file(tmp_path / "x.converted.safetensors"), LAST)
    assert path.read_bytes() == before
    with pytest.raises(ModelFileError, match="is there already"):
        convert(path, path)


@pytest.mark.parametrize("table", [dict, nn.ParameterDict])
def test_an_embedding_of_the_web_ui(tmp_path, table):
    rows = torch.randn(3, 768)
    held = {
        "string_to_token": {"*": 265},
        "string_to_param": table({"*": rows}),
        "name": "floor",
        "step": 500,
        "sd_checkpoint": None,
    }
    torch.save(held, tmp_path / "floor.pt")
    done, found = run(tmp_path / "floor.pt")
    assert done.kind == "embedding"
    assert same(found, {"emb_params": rows})
    header = read_header(tmp_path / "floor.safetensors")
    assert recognize(header).kind == "embedding"
    assert header.metadata["name"] == '"floor"'


def test_a_hypernetwork_of_the_web_ui(tmp_path):
    layers = {"linear.0.weight": torch.randn(4, 2), "linear.0.bias": torch.randn(4)}
    held = {2: (layers, layers), "layer_structure": [1, 2, 1], "activation_func": "relu", "step": 3}
    torch.save(held, tmp_path / "x.pt")
    done, found = run(tmp_path / "x.pt")
    assert done.kind == "hypernetwork"
    assert same(found, {f"2.{place}.{name}": t for place in (0, 1) for name, t in layers.items()})
    metadata = read_header(tmp_path / "x.safetensors").metadata
    assert (metadata["layer_structure"], metadata["activation_func"]) == ("[1, 2, 1]", '"relu"')


def zipped(path, pickled, *, name="x/data.pkl", data=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, pickled)
        archive.writestr("x/version", "3\n")
        for key, value in (data or {}).items():
            archive.writestr(f"x/data/{key}", value)


def opcodes(module, name):
    """A pickle that calls `module.name("touch /tmp/owned")`."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X\x10\x00\x00\x00touch /tmp/owned\x85R."


def tensor_of(numel, shape, stride, *more):
    """A pickle of {"a": a tensor with such a storage and shape}."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel, *more) if value == "STORAGE" else None

        def reducer_override(self, value):
            if isinstance(value, Marker):
                return torch._utils._rebuild_tensor_v2, ("STORAGE", 0, shape, stride, False, OrderedDict())  # noqa: SLF001
            return NotImplemented

    class Marker:
        pass

    file = io.BytesIO()
    Pickler(file, 2).dump({"a": Marker()})
    return file.getvalue()


@pytest.mark.parametrize(
    ("module", "name", "shown"),
    [
        ("os", "system", "os.system"),
        ("posix", "system", "posix.system"),
        ("nt", "system", "nt.system"),
        ("__builtin__", "eval", "eval"),
        ("builtins", "exec", "exec"),
        ("builtins", "getattr", "getattr"),
        ("subprocess", "Popen", "subprocess.Popen"),
        ("torch", "load", "torch.load"),
        ("torch.hub", "load", "torch.hub.load"),
        ("numpy.testing._private.utils", "runstring", "numpy.testing._private.utils.runstring"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_global_is_refused_and_never_called(tmp_path, module, name, shown, is_zip):
    path = tmp_path / "evil.ckpt"
    if is_zip:
        zipped(path, opcodes(module, name))
    else:
        path.write_bytes(opcodes(module, name))
    with pytest.raises(ModelFileError) as caught:
        read_pickled(path)
    assert (caught.value.code, caught.value.values["name"]) == ("pickle-global", shown)
    assert "\n" not in str(caught.value)


class Attack:
    """Would run a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/owned",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("is_zip", [True, False])
def test_an_attack_is_told_in_the_same_line_whatever_its_pickle_is_like(tmp_path, protocol, is_zip):
    path = tmp_path / "evil.ckpt"
    pickled = pickle.dumps({"name": "floor", "a": [Attack(), Attack()]}, protocol)
    if is_zip:
        zipped(path, pickled)
    else:
        path.write_bytes(pickled)
    name = f"{os.system.__module__}.system"
    with pytest.raises(ModelFileError) as caught:
        read_pickled(path)
    told = f"evil.ckpt: names '{name}', which no model file needs; refused, and nothing of it was run"
    assert str(caught.value) == told


def nested():
    """A list of lists of lists ..., each of which holds the one before twice: 2**60 leaves in 60 lists."""
    held = [1]
    for _ in range(60):
        held = [held, held]
    return held


BROKEN = {
    "an archive in an archive": (lambda p: zipped(p, b"", name="x/model.ckpt"), "pickle-member"),
    "a script": (lambda p: zipped(p, b"", name="x/code/run.py"), "pickle-member"),
    "a path that leads out": (lambda p: zipped(p, b"", name="../x/data.pkl"), "pickle-member"),
    "a zip bomb": (
        lambda p: zipped(p, bytes(10**7), compression=zipfile.ZIP_DEFLATED),
        "pickle-member-compressed",
    ),
    "no pickle": (lambda p: zipped(p, b"", name="x/byteorder"), "pickle-none"),
    "half an archive": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(60)), "pickle-unreadable"),
    "an unknown opcode": (lambda p: zipped(p, b"\x80\x04\x95."), "pickle-unreadable"),
    "an old class": (lambda p: zipped(p, b"(ios\nsystem\n."), "pickle-global"),
    "no end": (lambda p: zipped(p, b"\x80\x02}"), "pickle-unreadable"),
    "a huge text": (lambda p: zipped(p, b"\x80\x02X\xff\xff\xff\x7fab."), "pickle-unreadable"),
    "a storage that is not there": (lambda p: zipped(p, tensor_of(4, (4,), (1,))), "pickle-unreadable"),
    "a storage larger than its record": (
        lambda p: zipped(p, tensor_of(10**12, (10**12,), (1,)), data={"0": bytes(16)}),
        "pickle-unreadable",
    ),
    "a shape larger than its storage": (
        lambda p: zipped(p, tensor_of(4, (10**6,), (1,)), data={"0": bytes(16)}),
        "pickle-unreadable",
    ),
    "a stride of 0": (
        lambda p: zipped(p, tensor_of(4, (10**12,), (0,)), data={"0": bytes(16)}),
        "pickle-growth",
    ),
    "nothing": (lambda p: torch.save({}, p), "pickle-empty"),
    "two sets of tensors": (lambda p: torch.save({"params": LAST, "params_ema": LAST}, p), "pickle-containers"),
    "a newer protocol": (lambda p: torch.save(LAST, p, pickle_protocol=4), "pickle-unreadable"),
    "no table": (lambda p: torch.save([torch.zeros(2)], p), "pickle-no-tensors"),
    "no tensors": (lambda p: torch.save({"a": {"b": torch.zeros(2)}}, p), "pickle-no-tensors"),
    "lists without end": (lambda p: torch.save({"a": nested()}, p), "pickle-no-tensors"),
    "a sparse tensor": (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "pickle-tensor-kind"),
    "complex numbers": (lambda p: torch.save({"a": torch.zeros(2, dtype=torch.cfloat)}, p), "pickle-tensor-kind"),
    "a tensor without data": (lambda p: torch.save({"a": torch.zeros(2, device="meta")}, p), "pickle-tensor-kind"),
    "a number for a name": (lambda p: torch.save({3: torch.zeros(2)}, p), "pickle-tensor-name"),
    "two embeddings": (
        lambda p: torch.save({"string_to_param": {"*": torch.zeros(2), "b": torch.zeros(2)}}, p),
        "pickle-embedding-terms",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("write", "code"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_not_a_model_is_refused_in_one_line(tmp_path, write, code):
    path = tmp_path / "x.ckpt"
    write(path)
    with pytest.raises(ModelFileError) as caught:
        run(path)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not path.with_suffix(".safetensors").exists()


def test_ema_weights_that_are_not_there_are_not_kept():
    with pytest.raises(ModelFileError, match="has no EMA weights"):
        find_contents("x", LAST, "ema")
    with pytest.raises(ModelFileError, match="1 of its EMA tensors, such as 'model_ema.strange', have no"):
        find_contents("x", {**LAST, **EMA, "model_ema.strange": torch.zeros(1)}, "ema")


@pytest.mark.slow
def test_a_bomb_meets_the_limit_of_its_process_and_leaves_nothing(tmp_path):
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})  # as torch wrote files before 1.6
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in start) + tensor_of(2**33, (1,), (1,), None))
    with pytest.raises(ModelFileError) as caught:
        convert(path)
    assert caught.value.code == "pickle-memory", caught.value
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_pickled_is_told_by_name(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "x.ckpt")
    with pytest.raises(ModelFileError, match="a safetensors file already"):
        convert(tmp_path / "x.ckpt")
    (tmp_path / "y.ckpt").write_bytes(b"<!DOCTYPE html>" + bytes(60))
    with pytest.raises(ModelFileError, match="an HTML page"):
        convert(tmp_path / "y.ckpt")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 bytes"),
        (b"a text, not a model", "starts with b'a text, '"),
        (b'{"error": 404}', "a JSON text (perhaps a server's error message)"),
        (b"GGUF" + bytes(60), "a GGUF file"),
    ],
)
def test_what_torch_did_not_save_is_told_what_is_expected(tmp_path, content, found):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        convert(tmp_path / "x.ckpt")
    assert str(caught.value) == f"x.ckpt: {found}; expected a file saved by torch"
