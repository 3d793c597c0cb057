"""VITA-Audio on disk: bundles written small and published folders in shards are read back, and refused where they do
not fit; what is read takes little memory beside the model."""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.dialogue.vita_parts import parts
from torch import Tensor

from vivavoce.checkpoints import read
from vivavoce.checkpoints.compact import expand, shrink
from vivavoce.checkpoints.read import describe, free_memory, open_checkpoint
from vivavoce.dialogue import vita_audio_files
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_files import (
    Needed,
    import_vita_audio,
    open_bundle,
    open_published,
    read_config,
    save_bundle,
    small_weight,
    state_shapes,
    write_published,
)
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.nn.decoder import DecoderConfig


def test_a_bundle_comes_back_as_its_small_form(tmp_path):
    p = parts()
    save_bundle(tmp_path / "talk", p)
    again = open_bundle(tmp_path / "talk")
    assert again.tokens.codes == p.tokens.codes and again.interleave == p.interleave and again.name == "talk"
    small = expand(shrink({f"model.{k}": v for k, v in p.model.state_dict().items()}, small_weight))
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, small[f"model.{name}"]), name


def test_another_number_of_modules_is_refused(tmp_path):
    save_bundle(tmp_path / "talk", parts())
    with pytest.raises(CheckpointError, match="has 10 prediction modules, not 1"):
        open_bundle(tmp_path / "talk", modules=1)


def test_a_missing_part_is_told(tmp_path):
    save_bundle(tmp_path / "talk", parts())
    (tmp_path / "talk" / "config.json").write_text('{"system": "whisper", "config": {}}', "utf-8")
    with pytest.raises(CheckpointError, match="holds a whisper"):
        open_bundle(tmp_path / "talk")


def test_foreign_configurations_are_refused():
    with pytest.raises(CheckpointError, match="qwen2_mtp"):
        read_config({"model_type": "qwen2"})
    with pytest.raises(CheckpointError, match="incomplete"):
        read_config({"model_type": "qwen2_mtp"})
    with pytest.raises(CheckpointError, match="impossible size"):
        read_config(published(hidden_size=1 << 40))
    with pytest.raises(CheckpointError, match="impossible size"):
        read_config(published(num_hidden_layers=3, num_nextn_predict_layers=3))


# ---------------------------------------------------------------------------------------- published folders
INDEX = "model.safetensors.index.json"


def published(**changed: object) -> dict[str, object]:
    about = {
        "model_type": "qwen2_mtp", "num_nextn_predict_layers": 3, "num_hidden_layers": 5, "num_attention_heads": 3,
        "num_key_value_heads": 1, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 128,
        "rope_theta": 1e4, "rms_norm_eps": 1e-5, "vocab_size": 64,
    }  # fmt: skip
    return about | changed


@pytest.fixture(scope="module")
def model() -> VITAAudio:
    whole = parts(10, None).model
    config = whole.config.with_modules(2)
    smaller = VITAAudio(config)
    smaller.load_state_dict({key: whole.state_dict()[key] for key in smaller.state_dict()})
    return smaller.eval()


@pytest.fixture
def folder(tmp_path: Path, model: VITAAudio) -> Path:
    """A tiny published checkpoint in several shards."""
    write_published(tmp_path / "boost", model.config, model.state_dict(), parts().tokens.tokenizer, shard=30_000)
    return tmp_path / "boost"


def places(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def refused(folder: Path, sentence: str) -> None:
    """The reader's error is one sentence, and this one."""
    with pytest.raises(CheckpointError, match=sentence) as found:
        open_published(folder)
    assert not re.search(r"[.!?] [A-Z]", str(found.value)) and "\n" not in str(found.value)


def test_a_published_folder_comes_back(folder: Path, model: VITAAudio):
    assert len(set(places(folder).values())) > 3
    said: list[str] = []
    again, tokens = open_published(folder, report=said.append)
    assert again.config == model.config and tokens.codes == parts().tokens.codes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    shards, tensors = len(set(places(folder).values())), len(places(folder))
    assert said[0].startswith(f"boost (qwen2_mtp, safetensors in {shards} shards, {tensors} tensors, ")
    assert said[0].endswith(f": {count:,} parameters, {4 * count / 1e6:.1f} MB in float32")


def test_a_published_folder_in_halves(folder: Path, model: VITAAudio):
    again, _ = open_published(folder, modules=2, dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.bfloat16(), again.state_dict()[name]), name


def test_one_file_holds_a_small_model(tmp_path: Path, model: VITAAudio):
    write_published(tmp_path, model.config, model.state_dict(), parts().tokens.tokenizer)
    assert [file.name for file in sorted(tmp_path.glob("*.safetensors*"))] == ["model.safetensors"]
    config, weights = import_vita_audio(open_checkpoint(tmp_path))
    assert config == model.config and all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    (tmp_path / "model.safetensors").unlink()
    assert weights["head.weight"].sum() == model.head.weight.sum()  # nothing of it stays mapped
    with pytest.raises(ConfigError, match="published form"):
        write_published(tmp_path, replace(model.config, module_reads=4), model.state_dict(), parts().tokens.tokenizer)


def test_missing_shards_are_named(folder: Path):
    first, second, *_ = sorted(set(places(folder).values()))
    (folder / second).unlink()
    refused(folder, f"names the shard '{second}', which does not lie beside it")
    (folder / first).unlink()
    refused(folder, rf"names 2 of its \d+ shards '{first}', '{second}', which do not lie beside it")


def test_shards_without_their_index_are_told(folder: Path):
    count = len(set(places(folder).values()))
    (folder / INDEX).unlink()
    refused(folder, f"holds {count} of {count} shards without their index; fetch {INDEX} too")
    for file in sorted(folder.glob("*.safetensors"))[1:]:
        file.unlink()
    refused(folder, f"holds 1 of {count} shards")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../elsewhere.safetensors", "does not lie beside it"),
        ("gone.safetensors", "does not lie beside it"),
        (INDEX, "names an index among its shards"),
        ("model-00001-of-00001.safetensors", "is damaged"),
    ],
)
def test_an_index_that_names_something_else(folder: Path, name: str, sentence: str):
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{      }"[:-2])
    where = places(folder) | {"lm_head.weight": name}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, sentence)


def test_a_tensor_in_no_shard(folder: Path):
    where = places(folder)
    where["extra.weight"] = where["lm_head.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, r"does not hold extra\.weight")
    del where["extra.weight"], where["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, r"missing: model\.norm\.weight")


def test_plain_and_plus_files_are_kept_apart(folder: Path):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"model_type": "qwen2_mtp_sensevoice"}))
    refused(folder, r"boost \(qwen2_mtp_sensevoice, .* is that of a VITA-Audio-Plus but the weights .* a plain VITA")
    where, name = places(folder), "hearing.safetensors"
    save_file({"model.audio_model.model.embed.weight": torch.ones(2, 2)}, folder / name)
    (folder / INDEX).write_text(json.dumps({"weight_map": where | {"model.audio_model.model.embed.weight": name}}))
    refused(folder, "give a plain checkpoint")  # Plus altogether
    (folder / "config.json").write_text(json.dumps(about))
    refused(folder, "is that of a plain VITA-Audio but the weights are those of a VITA-Audio-Plus")


def test_a_tokenizer_of_another_checkpoint(folder: Path, model: VITAAudio):
    rows, count = model.config.vocab_size, parts().tokens.tokenizer.engine.get_vocab_size()
    engine = parts().tokens.tokenizer.engine
    other = json.loads(engine.to_str())
    last = count - 9
    other["added_tokens"] = [token for token in other["added_tokens"] if token["id"] <= last]
    (folder / "tokenizer.json").write_text(json.dumps(other))
    refused(folder, f"has {last + 1} tokens, for which a model has {rows - 8} rows and not {rows}")
    plus = json.loads(engine.to_str())
    for token in plus["added_tokens"]:
        token["content"] = token["content"].replace("<|image|>", "<|context_of_audio|>")
    (folder / "tokenizer.json").write_text(json.dumps(plus))
    refused(folder, "that of a VITA-Audio-Plus")
    other["added_tokens"] = other["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(other))
    refused(folder, "no special token '<|begin_of_audio|>'".replace("|", r"\|"))
    (folder / "tokenizer.json").unlink()
    refused(folder, r"no tokenizer\.json beside it")


def test_too_little_memory_is_told_before_reading(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> Tensor:
        raise AssertionError("a tensor was read")

    need = Needed.of(state_shapes(read_config(json.loads((folder / "config.json").read_text()))), torch.float32)
    monkeypatch.setattr(vita_audio_files, "free_memory", lambda: need.bytes + need.beside)
    open_published(folder)
    monkeypatch.setattr(vita_audio_files, "free_memory", lambda: need.bytes + need.beside - 1)
    monkeypatch.setattr(read, "_get", never)
    refused(folder, rf"{need.parameters:,} parameters, .* in float32, .*are free; load it in bfloat16 \(")
    with pytest.raises(AssertionError, match="was read"):
        open_published(folder, dtype=torch.bfloat16)  # fits


def test_what_is_needed_at_the_published_size():
    need = Needed.of(state_shapes(VITAAudioConfig.published(10)), torch.bfloat16)
    assert str(need) == "10,317,912,576 parameters, 20.6 GB in bfloat16"
    assert need.beside == 4 * 2 * 18_944 * 3584  # gate and up


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = free_memory()
    assert here is None or here > 1 << 20
    files = tuple(tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(read, "_CGROUPS", (files,))
    for file, text in zip(files, ("5000\n", "4000\n", "anon 1\ninactive_file 600\nactive_file 100\n"), strict=True):
        file.write_text(text)
    assert free_memory() == 1700
    files[0].write_text("max\n")
    assert free_memory() != 1700


def test_describe_says_what_lies_there(tmp_path: Path):
    save_file({"a": torch.ones(10)}, tmp_path / "single.safetensors")
    assert re.fullmatch(
        r"single\.safetensors \(safetensors, 1 tensors, 0\.0 MB\)",
        describe(open_checkpoint(tmp_path / "single.safetensors")),
    )


def peak() -> int | None:
    """The most bytes that have been resident since the last call, where the system tells."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def test_reading_takes_less_than_a_shard_beside_the_model(tmp_path: Path):
    decoder = DecoderConfig(
        dim=384, n_layers=12, n_heads=6, n_kv_heads=2, head_dim=64, ffn_dim=1536, context=64, qkv_bias=True
    )
    size = parts().tokens.tokenizer.engine.get_vocab_size()
    config = VITAAudioConfig(decoder=decoder, vocab_size=-(-size // 8) * 8, modules=2)
    weights = {key: torch.full(shape, 0.5) for key, shape in state_shapes(config).items()}
    whole = sum(tensor.nbytes for tensor in weights.values())
    shard = whole // 5
    write_published(tmp_path, config, weights, parts().tokens.tokenizer, shard)
    del weights
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or peak() is None:
        pytest.skip("this system does not tell what was resident")
    trim(0)
    assert len(set(places(tmp_path).values())) >= 6
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    peak()
    _, made = import_vita_audio(open_checkpoint(tmp_path))
    most = peak()
    assert most is not None and made["head.weight"][0, 0] == 0.5
    assert most - before < whole + shard
