"""VITA-Audio begun from a Qwen2.5: text means what it meant, tokens are numbered as published, new rows are the
mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import CHAT_TOKENS, randomised, tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from vivavoce.checkpoints import store
from vivavoce.checkpoints.layouts.llama import transformers, with_head
from vivavoce.checkpoints.native import build, save_native
from vivavoce.checkpoints.rules import export_weights
from vivavoce.dialogue import vita_audio_files
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.dialogue.vita_audio_start import Start, grow, grown_rows, grown_tokenizer, open_qwen, start
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.nn.decoder import DecoderConfig
from vivavoce.nn.quantized import pack_tiles, quantize_rows
from vivavoce.text.tokenizer import Tokenizer

KNOWN, ROWS, CODES = 259, 264, 32  # tokens of the tiny tokenizer, rows of the tiny Qwen, speech tokens
PUBLISHED = [
    "begin_of_image", "end_of_image", "context_of_image", "begin_of_video", "end_of_video", "context_of_video",
    "begin_of_patch", "end_of_patch", "context_of_patch", "begin_of_audio", "end_of_audio", "begin_of_quad",
    "end_of_quad", "begin_of_ref", "end_of_ref", "begin_of_box", "end_of_box", "image", "video", "audio", "audio_0",
]  # fmt: skip


def qwen(tied: bool, seed: int = 0) -> Llama:
    decoder = DecoderConfig(
        dim=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, ffn_dim=64, context=64, qkv_bias=True
    )
    model = randomised(Llama(LlamaConfig(decoder=decoder, vocab_size=ROWS, tied=tied)), seed)
    assert isinstance(model, Llama)
    return model


def write_qwen(folder: Path, model: Llama, dtype: torch.dtype = torch.float32) -> None:
    """As Qwen2.5 is published: safetensors under the names of transformers, a small one without a head."""
    folder.mkdir(parents=True, exist_ok=True)
    c, tied = model.config.decoder, model.config.tied
    layout = with_head(transformers(c.n_heads, c.n_kv_heads), "model.embed_tokens.weight", "lm_head.weight", tied)
    theirs = export_weights(layout, model.state_dict())
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in theirs.items()}, folder / "model.safetensors")
    about = {
        "model_type": "qwen2", "hidden_size": c.dim, "intermediate_size": c.ffn_dim, "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base, "vocab_size": ROWS, "tie_word_embeddings": tied,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    assert tokenizer(folder / "tokenizer.json", CHAT_TOKENS) == KNOWN


@torch.inference_mode()
def assert_same_text(begun: Start, wanted: Llama) -> None:
    """Qwen's own logits, over all rows that it has."""
    ids = torch.randint(0, KNOWN, (2, 17), generator=torch.Generator().manual_seed(1))
    model, old = build(VITAAudio, begun.config, begun.weights), wanted.config.vocab_size
    logits = wanted.eval().logits(ids)
    error = (model.logits(model(ids)[0])[..., :old] - logits).abs().max() / logits.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_text_means_what_it_meant(tmp_path: Path, tied: bool):
    model = qwen(tied)
    write_qwen(tmp_path, model)
    begun = start(tmp_path, CODES)
    assert begun.config.modules == 0 and begun.config.vocab_size == 312  # 259 + 20 + 32 = 311, in eights
    assert_same_text(begun, model)
    embedding, head = begun.weights["embedding.weight"], begun.weights["head.weight"]
    assert torch.equal(embedding, head) == tied and embedding.data_ptr() != head.data_ptr()
    assert torch.allclose(embedding[ROWS:], model.embedding.weight.mean(0).expand(312 - ROWS, -1), atol=1e-6)
    assert torch.allclose(head[ROWS:], model.head.weight.mean(0).expand(312 - ROWS, -1), atol=1e-6)
    assert torch.equal(embedding[:ROWS], model.embedding.weight)  # the spare rows of Qwen too


def test_halves_stay_halves(tmp_path: Path):
    write_qwen(tmp_path, qwen(True), torch.bfloat16)
    begun = start(tmp_path, CODES, torch.bfloat16)
    assert {tensor.dtype for tensor in begun.weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_a_pulled_model_begins_as_the_floats_its_integers_stand_for(tmp_path: Path, tied: bool):
    model = qwen(tied, seed=3)
    stored = {}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("down.weight"):
                levels = torch.randint(0, 16, value.shape, dtype=torch.uint8)
                scale, low = torch.rand(2, len(value), value.shape[1] // 32).half().float()
                stored[name.replace("weight", "tiles")] = pack_tiles(levels, scale, -low)
                value.copy_(levels * scale.repeat_interleave(32, 1) - low.repeat_interleave(32, 1))
            elif value.dim() == 2:
                if name != "head.weight" or not tied:
                    stored[name], stored[f"{name}_scale"] = quantize_rows(value)
                    value.copy_(stored[name] * stored[f"{name}_scale"][:, None])
            else:
                stored[name] = value
    save_native(tmp_path, "llama", model.config, stored, {"chat": "chatml"})
    tokenizer(tmp_path / "tokenizer.json", CHAT_TOKENS)
    assert_same_text(start(tmp_path, CODES), model)


def test_tokens_are_numbered_as_published():
    """At Qwen2.5's own size, with the names that a GGUF file gives to spare rows."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {f"word{number}": number for number in range(256, 151_643)}
    own = [*CHAT_TOKENS, *(f"<|own_{number}|>" for number in range(19))]
    vocabulary |= {name: 151_643 + number for number, name in enumerate(own)}
    vocabulary |= {f"[PAD{number}]": number for number in range(151_665, 151_936)}
    engine = Engine(models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in own])
    grown = grown_tokenizer(Tokenizer(engine, {name: vocabulary[name] for name in own}))
    assert [grown.id(f"<|{name}|>") for name in PUBLISHED] == list(range(151_665, 151_686))
    tokens = VITATokens(grown)
    assert (tokens.begin_audio, tokens.end_audio, tokens.first_code) == (151_674, 151_675, 151_685)
    assert tokens.codes == 16_384 and grown.engine.get_vocab_size() == 168_069
    assert -(-grown.engine.get_vocab_size() // 8) * 8 == 168_072
    assert max(grown.encode("a <|audio_7|> b")) < 256 and grown.decode([tokens.first_code]) == ""
    assert grown.engine.token_to_id("[PAD151665]") is None and grown.engine.id_to_token(151_700) == "<|audio_15|>"


def test_new_rows_are_the_mean_and_spare_ones_are_left_out():
    weight = torch.randn(6, 4).bfloat16()
    assert torch.equal(grown_rows(weight, 8)[6:], weight.float().mean(0).bfloat16().expand(2, 4))
    assert torch.equal(grown_rows(weight, 4), weight[:4])


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_qwen(tmp_path / "qwen", qwen(True))
    config, weights, known = open_qwen(tmp_path / "qwen")
    with pytest.raises(CheckpointError, match="259 tokens and the model 100 rows"):
        grow(replace(config, vocab_size=100), weights, known, CODES)
    with pytest.raises(CheckpointError, match=r"has <\|begin_of_image\|> already"):
        grown_tokenizer(grown_tokenizer(known, CODES), CODES)
    save_native(tmp_path / "other", "whisper", LlamaConfig.tiny(), {})
    with pytest.raises(CheckpointError, match="holds a whisper, not a language model"):
        open_qwen(tmp_path / "other")
    plain = replace(config, decoder=replace(config.decoder, qkv_bias=False))
    save_native(tmp_path / "llama", "llama", plain, {})
    with pytest.raises(CheckpointError, match="llama is no Qwen2"):
        open_qwen(tmp_path / "llama")
    save_native(tmp_path / "half", "llama", config, {})
    with pytest.raises(CheckpointError, match=r"has no embedding\.weight"):
        open_qwen(tmp_path / "half")
    monkeypatch.setattr(vita_audio_files, "free_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match="MB of memory are free"):
        open_qwen(tmp_path / "qwen")


@pytest.mark.weights
def test_the_real_qwen_speaks_on_as_before():
    name = "qwen2.5-coder-0.5b-instruct"
    if name not in store.installed():
        pytest.skip(f"not in the cache: {name}")
    config, weights, known = open_qwen(store.locate(name))
    begun = grow(config, weights, known)
    assert begun.config.vocab_size == 168_072 and begun.tokens.first_code == 151_685
    ids = torch.tensor([known.encode("The capital of France is")])
    with torch.inference_mode():
        wanted = build(Llama, config, weights).logits(ids)[0]
        model = build(VITAAudio, begun.config, begun.weights)
        logits = model.logits(model(ids)[0])[0]
    assert (logits[:, : config.vocab_size] - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert begun.tokens.tokenizer.decode([int(logits[-1].argmax())]) == " Paris"
    assert torch.equal(begun.weights["head.weight"][151_936:], begun.weights["head.weight"][-1:].expand(16_136, -1))
