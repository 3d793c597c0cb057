"""VITA-Audio-Plus: what is heard takes the place of the prompt's marks, however the prompt is read; files; sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.asr.test_sensevoice import write_statistics
from tests.tiny import randomised, tokenizer
from torch import Tensor

import vivavoce
from vivavoce.asr.sensevoice import SenseVoiceConfig
from vivavoce.checkpoints.layouts.vita_audio import plus
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.rules import export_weights
from vivavoce.dialogue.vita_audio import VITAAudioConfig
from vivavoce.dialogue.vita_audio_cycles import write_scheduled
from vivavoce.dialogue.vita_audio_plus import (
    PlusTokens,
    PlusWriter,
    Sound,
    VITAAudioPlus,
    VITAAudioPlusConfig,
    unheard,
)
from vivavoce.dialogue.vita_audio_plus_files import import_vita_audio_plus
from vivavoce.dialogue.vita_audio_prompts import Message, answer_prompt
from vivavoce.dialogue.vita_audio_writing import MODES
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.nn.decoder import DecoderLayer
from vivavoce.text.tokenizer import Tokenizer

CONTEXT = 44
BEFORE, BETWEEN, BEHIND = [7, 3, 42], [43, 12, 42], [43, 1, 9, 30]


def model(modules: int = 3, reads: int | None = None) -> VITAAudioPlus:
    config = VITAAudioPlusConfig.tiny()
    made = VITAAudioPlus(replace(config, model=replace(config.model, modules=modules, module_reads=reads)))
    randomised(made)
    made.hearing.shift, made.hearing.scale = made.hearing.shift - 9.0, made.hearing.scale * 0.15
    return made


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def heard(net: VITAAudioPlus) -> tuple[list[int], list[Tensor]]:
    """A prompt with two clips of different length, and their states."""
    waves = torch.stack([noise(1_500), noise(1_500, 1)])
    clips = net.hear(waves, torch.tensor([1_500, 800]))
    first, second = ([CONTEXT] * len(clip) for clip in clips)
    return [*BEFORE, *first, *BETWEEN, *second, *BEHIND], clips


@torch.inference_mode()
def by_hand(net: VITAAudioPlus, text: list[int], clips: list[Tensor]) -> list[Tensor]:
    """Final states of backbone and modules without a cache, from the formulas: only the backbone hears."""
    tokens, m = torch.tensor([text]), net.model
    length = len(text)
    plain = m.embedding(tokens)
    x = plain.clone()
    x[0, [i for i, token in enumerate(text) if token == CONTEXT]] = torch.cat(clips)
    cosine, sine = m.decoder.angles(x)[:, None, None, :length]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    for layer in m.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        x = layer.teach(x, (cosine, sine), causal)
    hidden = m.decoder.norm(x)
    states, reads = [hidden], m.config.module_reads
    prompt = len(BEFORE + BETWEEN + BEHIND) + sum(map(len, clips))
    begun = 1 if reads is None else prompt - reads + 1
    for first, module in enumerate(m.mctp, begun):
        u = module.join(plain[:, first:], states[-1][:, first - 1 : -1])
        own = module.layer.teach(u, (cosine[:, :, first:], sine[:, :, first:]), causal[..., first:, first:])
        own = m.decoder.norm(own)
        states.append(torch.nn.functional.pad(own, (0, 0, first, 0)))
    return states


def writer(net: VITAAudioPlus, text: list[int], clips: list[Tensor], pieces: int = 1) -> PlusWriter:
    """A writer that has been given the prompt, cut where a clip ends."""
    w = PlusWriter.begin(net.model)
    assert isinstance(w, PlusWriter)
    if pieces == 1:
        w.add_heard(text, clips, CONTEXT)
    else:
        cut = len(BEFORE) + len(clips[0]) + 1
        w.add_heard(text[:cut], clips[:1], CONTEXT)
        w.prefill()
        w.add_heard(text[cut:], clips[1:], CONTEXT)
    w.begin_answer()
    return w


def test_the_whole_at_once_equals_the_formulas():
    net = model()
    text, clips = heard(net)
    with torch.inference_mode():
        sound = Sound(torch.tensor([text]) == CONTEXT, torch.cat(clips))
        found = zip(net(torch.tensor([text]), sound), by_hand(net, text, clips), strict=True)
        for first, (ours, wanted) in enumerate(found):  # before that a module has nothing to read
            torch.testing.assert_close(ours[:, first:], wanted[:, first:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads", [None, 4])
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("mode", ["vanilla", "boost", "turbo"])
def test_cached_writing_equals_the_uncached_chain(mode, pieces, reads):
    net = model(reads=reads)
    text, clips = heard(net)
    w = writer(net, text, clips, pieces)
    with torch.inference_mode():
        written = list(write_scheduled(w, MODES[mode], 14))
        for i, step in enumerate(written):
            states = by_hand(net, text + [s.token for s in written[:i]], clips)
            logits = net.logits(states[0 if step.module is None else step.module + 1][0, -1])
            assert int(logits.argmax()) == step.token
    assert {s.module for s in written} >= {None}


def test_without_sound_it_is_the_plain_model():
    net, tokens = model(), torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for number, (ours, plain) in enumerate(zip(net(tokens), net.model(tokens), strict=True)):
            torch.testing.assert_close(ours[:, number:], plain[:, number:], rtol=1e-4, atol=1e-5)
        assert len(net(tokens[:, :2])) == 4  # shorter than the last module's first token


@torch.inference_mode()
def test_the_backbone_hears_and_the_modules_read_the_mark():
    net = model()
    text, clips = heard(net)
    tokens, places = torch.tensor([text]), torch.tensor([text]) == CONTEXT
    before = net(tokens, Sound(places, torch.cat(clips)))
    net.model.embedding.weight[CONTEXT] += 1.0
    after = net(tokens, Sound(places, torch.cat(clips)))
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1][:, 5:], after[1][:, 5:])
    other = net(tokens, Sound(places, torch.cat(clips) + 0.1))
    assert not torch.allclose(after[0], other[0])


@torch.inference_mode()
def test_clips_padded_into_one_batch_are_heard_as_alone():
    net = model()
    waves, lengths = torch.stack([noise(2_000, 3), noise(2_000, 4)]), torch.tensor([2_000, 700])
    together = net.hear(waves, lengths)
    for row, length in enumerate(lengths.tolist()):
        (alone,) = net.hear(waves[row : row + 1, :length])
        assert len(alone) == net.config.hearing.positions(length) == len(together[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_rows_of_a_batch_hear_their_own_clips():
    net = model()
    _, clips = heard(net)
    count = len(clips[0])
    rows = torch.tensor([[*BEFORE, *[CONTEXT] * count, 43], [*BEHIND[:3], *[CONTEXT] * count, 12]])
    other = net.hear(noise(1_500, 7)[None])[0]
    both = net(rows, Sound(rows == CONTEXT, torch.cat([clips[0], other])))
    alone = net(rows[1:], Sound(rows[1:] == CONTEXT, other))
    for together, single in zip(both, alone, strict=True):
        torch.testing.assert_close(together[1:], single, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_features_are_rounded_as_published_unless_told_otherwise():
    net, wave = model(), noise(2_000)[None]
    rounded = net.hear(wave)[0]
    net.config = replace(net.config, rounded=False)
    exact = net.hear(wave)[0]
    assert 0 < (rounded - exact).abs().max() / exact.abs().max() < 0.05
    features, _ = net.hearing.features(wave)
    states, _ = net.hearing.encode(features.bfloat16().float())
    assert torch.equal(net.projector(states)[0], rounded)


def test_places_and_clips_must_fit():
    net = model()
    text, clips = heard(net)
    with pytest.raises(ConfigError, match=r"places for sound and the clips fill \d+; give every clip its own places"):
        PlusWriter.begin(net.model).add_heard(text, clips[:1], CONTEXT)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="places for sound"):
        net(torch.tensor([text]), Sound(torch.tensor([text]) == CONTEXT, clips[0]))


def test_prompts_hold_a_place_for_every_state(tmp_path: Path):
    names = ("<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|context_of_audio|>",
             *(f"<|audio_{i}|>" for i in range(4)))  # fmt: skip
    tokenizer(tmp_path / "tokenizer.json", names)
    tokens = PlusTokens(Tokenizer.from_file(tmp_path / "tokenizer.json"))
    ids = tokens.prompt(answer_prompt(), [unheard(7)])
    at = ids.index(tokens.begin_audio)
    assert ids[at + 1 : at + 9] == [tokens.context] * 7 + [tokens.end_audio] and ids.count(tokens.context) == 7
    record = [Message("user", "<|audio|>"), Message("assistant", "yes<|audio|>")]
    ids, labels = tokens.record(record, [unheard(5), [0, 1, 2]], (1, 10))
    assert ids.count(tokens.context) == 5 and ids.count(tokens.first_code + 2) == 1
    assert all(label == -100 for token, label in zip(ids, labels, strict=True) if token == tokens.context)
    with pytest.raises(ConfigError, match="outside 0 to 3"):
        tokens.prompt(answer_prompt(), [[-1, 2]])


def test_a_published_folder_is_read_and_written_back(tmp_path: Path):
    hearing = replace(SenseVoiceConfig.tiny(), stacked=7, hop=6, n_mels=8, n_heads=4)
    net = VITAAudioPlus(VITAAudioPlusConfig(model=replace(VITAAudioConfig.tiny(), modules=2), hearing=hearing))
    randomised(net)
    net.hearing.shift, net.hearing.scale = net.hearing.shift - 9.5, net.hearing.scale * 0.25
    c = net.config.model.decoder
    theirs = export_weights(plus(c.n_heads, c.n_kv_heads, c.n_layers, 2), net.state_dict())
    kept = {key: value.contiguous() for key, value in theirs.items() if not key.startswith("am.mvn")}
    save_file(kept, tmp_path / "model.safetensors")
    about = {
        "model_type": "qwen2_mtp_sensevoice", "num_nextn_predict_layers": 2, "num_hidden_layers": c.n_layers + 2,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "hidden_size": c.dim,
        "intermediate_size": c.ffn_dim, "max_position_embeddings": c.context, "rope_theta": c.rope_base,
        "rms_norm_eps": c.norm_eps, "vocab_size": 61,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"no am\.mvn beside it"):
        import_vita_audio_plus(open_checkpoint(tmp_path))
    write_statistics(tmp_path / "am.mvn", net.hearing)
    config, weights = import_vita_audio_plus(open_checkpoint(tmp_path))
    assert config == net.config and weights.keys() == net.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert isinstance(vivavoce.load(tmp_path), VITAAudioPlus)
    for kind, said in (
        ("qwen2_mtp", "that of a plain VITA-Audio but the weights"),
        ("llama", "is not VITA-Audio-Plus's"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(about | {"model_type": kind}))
        with pytest.raises(CheckpointError, match=said):
            import_vita_audio_plus(open_checkpoint(tmp_path))


@pytest.mark.parametrize("modules, size", [(0, 7_979_042_111), (10, 10_566_592_831)])
def test_published_sizes(modules: int, size: int):
    with torch.device("meta"):
        net = VITAAudioPlus(VITAAudioPlusConfig.published(modules))
    assert sum(parameter.numel() for parameter in net.parameters()) == size


@torch.inference_mode()
def test_a_text_with_sound_is_forked_cut_and_written_down():
    net = model()
    text, clips = heard(net)
    w = writer(net, text, clips)
    other = w.fork()
    other.add_heard([CONTEXT], [torch.zeros(1, net.config.model.decoder.dim)], CONTEXT)
    assert len(other.places) == len(w.places) + 1 and len(w.tokens) == len(text)
    again = PlusWriter.from_tensors(net.model, w.to_tensors())
    wanted = list(write_scheduled(w, MODES["boost"], 14))
    assert list(write_scheduled(again, MODES["boost"], 14)) == wanted
    again.cut(len(text) + 1)  # what is read again is heard again
    again.add([3])
    fresh = writer(net, text, clips)
    fresh.add(again.tokens[len(text) :])
    torch.testing.assert_close(again.backbone(), fresh.backbone(), rtol=0, atol=1e-4)
    tensors = w.to_tensors()
    for wrong in ({"places": tensors["places"] + 999}, {"sound": tensors["sound"][1:]}):
        with pytest.raises(ValueError):
            PlusWriter.from_tensors(net.model, {**tensors, **wrong})
