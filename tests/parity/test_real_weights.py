"""Published weights against reference implementations, on real speech and real questions.

Needs: the references installed beside us (transformers, gguf, onnxruntime, onnx), VIVA_PUBLISHED = a folder with the
files as published (tiny.en/, base/: CTranslate2; smol/, q05/: model.gguf; joe/: the ONNX voice), VIVA_DATA = the
recordings. Run with ``make parity``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.parity.compare import relative

pytestmark = pytest.mark.parity
PUBLISHED = Path(os.environ.get("VIVA_PUBLISHED", "/nonexistent"))
DATA = Path(os.environ.get("VIVA_DATA", "/nonexistent"))
TOLERANCE = 1e-4

QUESTIONS = (
    "What is the capital of France?",
    "How many legs does a spider have?",
    "What is photosynthesis?",
    "Tell me a short joke.",
    "Who wrote Hamlet?",
    "How do I boil an egg?",
    "What colour is the sky?",
    "Name three fruits.",
    "Why is the sea salty?",
    "What should I do when I feel tired?",
)


def _published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"no published files in VIVA_PUBLISHED/{name}")
    return path


def _clips(count: int) -> list[torch.Tensor]:
    if not DATA.is_dir():
        pytest.skip("set VIVA_DATA to the folder of recordings")
    sys.path.insert(0, str(DATA))
    import read_clip  # pyright: ignore[reportMissingImports]

    rows = [row for row in read_clip.manifest(shard="en_librispeech3.tar", split="test") if row["duration_s"] < 20]
    return [torch.from_numpy(read_clip.read(row)[0]) for row in rows[:count]]


@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_whisper_equals_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from vivavoce.asr.whisper_files import load_published
    from vivavoce.audio.mel import mel_spectrum, whisper_scale
    from vivavoce.checkpoints.layouts.whisper import TRANSFORMERS
    from vivavoce.checkpoints.read import open_checkpoint
    from vivavoce.checkpoints.rules import export_weights

    ours = load_published(open_checkpoint(_published(name)))
    c = ours.config
    theirs = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=c.vocab_size, num_mel_bins=c.n_mels, d_model=c.audio_dim, encoder_layers=c.audio_layers,
            encoder_attention_heads=c.audio_heads, decoder_layers=c.text_layers, decoder_attention_heads=c.text_heads,
            encoder_ffn_dim=4 * c.audio_dim, decoder_ffn_dim=4 * c.text_dim, pad_token_id=c.vocab_size - 1608,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    missing, surplus = theirs.load_state_dict(export_weights(TRANSFORMERS, ours.state_dict()), strict=False)
    assert set(missing) <= {"proj_out.weight"} and not surplus
    start = [c.vocab_size - 1607] if name.endswith(".en") else [50258, 50259, 50359]
    untimed = 50362 if name.endswith(".en") else 50363
    with torch.inference_mode():
        for wave in _clips(5):
            mel = whisper_scale(mel_spectrum(F.pad(wave, (0, 480_000 - wave.numel()))[None], c.mel))
            memory = ours.decoder.remember(ours.encode(mel))
            encoded = theirs.model.encoder(mel).last_hidden_state
            tokens = [*start, untimed]
            state = ours.decoder.init_state(1, 64)
            step, state = ours.decoder.step(torch.tensor([tokens]), state, memory, len(tokens))
            for _ in range(40):  # greedy with our cache, judged by their uncached pass
                tokens.append(int(step.argmax()))
                step, state = ours.decoder.step(torch.tensor([tokens[-1:]]), state, memory, len(tokens))
            wanted = theirs(encoder_outputs=(encoded,), decoder_input_ids=torch.tensor([tokens])).logits[0]
            assert relative(ours.decoder(torch.tensor([tokens]), memory)[0], wanted) <= TOLERANCE
            at = len(start)
            assert wanted[at:-1].argmax(-1).tolist() == tokens[at + 1 :]


@pytest.mark.parametrize("name", ["smol", "q05"])
def test_language_models_equal_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    from vivavoce.checkpoints.native import build
    from vivavoce.checkpoints.read import open_checkpoint
    from vivavoce.lm.llama import Llama
    from vivavoce.lm.llama_files import import_llama, read_tokenizer

    folder = _published(name)
    checkpoint = open_checkpoint(folder / "model.gguf")
    ours = build(Llama, *import_llama(checkpoint))
    tokenizer, _ = read_tokenizer(checkpoint)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        for question in QUESTIONS:
            start, end = tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")
            tokens = [start, *tokenizer.encode(f"user\n{question}"), end, *tokenizer.encode("\n"), start]
            tokens += tokenizer.encode("assistant\n")
            asked = len(tokens)
            state = ours.init_state(1, 128)
            step, state = ours.step(torch.tensor([tokens]), state, len(tokens))
            for _ in range(24):
                tokens.append(int(step.argmax()))
                step, state = ours.step(torch.tensor([tokens[-1:]]), state, len(tokens))
            wanted = theirs(torch.tensor([tokens])).logits[0]
            assert relative(ours.logits(torch.tensor([tokens]))[0], wanted) <= TOLERANCE
            assert wanted[asked - 1 : -1].argmax(-1).tolist() == tokens[asked:]
