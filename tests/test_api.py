"""Loading from every layout, random models by size, transcribing and speaking as library functions, conversions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

import vivavoce
from tests.tiny import (
    CHAT_TOKENS,
    WHISPER_TOKENS,
    int8,
    randomised,
    tokenizer,
    tone,
    voice_settings,
    whisper_config,
)
from vivavoce import api, conversions
from vivavoce.asr.whisper import Whisper
from vivavoce.asr.whisper_recognizer import WhisperRecognizer
from vivavoce.catalogue import CATALOGUE
from vivavoce.checkpoints.gguf import TYPES, GGUFFile, GGUFTensor
from vivavoce.checkpoints.layouts import hifigan, llama, silero, vits, whisper
from vivavoce.checkpoints.native import build, open_native, save_native
from vivavoce.checkpoints.read import Checkpoint
from vivavoce.checkpoints.rules import export_weights
from vivavoce.detect.silero import Silero, SileroConfig
from vivavoce.errors import AudioError, CheckpointError, ConfigError, MissingWeightsError, UnknownNameError
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.lm.llama_files import import_int8, import_llama, read_config
from vivavoce.nn.decoder import DecoderConfig
from vivavoce.nn.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.nn.quantized import Int4Linear, Int8Linear, pack_tiles, quantize_rows
from vivavoce.tts.vits import VITS, VITSConfig
from vivavoce.tts.vits_voice import VITSVoice


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def same(ours: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.allclose(value, theirs[key], atol=1e-6) for key, value in ours.state_dict().items())


# ---------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("layout", [whisper.OPENAI, whisper.TRANSFORMERS], ids=lambda layout: layout.name)
def test_whisper_from_published_layouts(desk: Path, layout) -> None:
    folder = desk / "published"
    folder.mkdir()
    model = randomised(Whisper(whisper_config(tokenizer(folder / "tokenizer.json", WHISPER_TOKENS))))
    write(folder / "model.safetensors", export_weights(layout, model.state_dict()))
    (folder / "config.json").write_text(json.dumps({"encoder_attention_heads": 3, "decoder_attention_heads": 3}))
    loaded = vivavoce.load(folder, dtype="float32", parts={"voice_activity": None})
    assert isinstance(loaded, WhisperRecognizer) and same(loaded.model, model)
    assert loaded.tokens.multilingual and loaded.voice_activity is None
    quick = vivavoce.load(folder)
    assert any(isinstance(module, Int8Linear) for module in quick.model.modules()) and quick.voice_activity is not None


def test_silero_hifigan_and_vits_from_published_files(desk: Path) -> None:
    detector = randomised(Silero(SileroConfig()))
    path = write(desk / "silero.safetensors", export_weights(silero.SAFETENSORS, detector.state_dict()))
    assert same(vivavoce.load(path), detector)

    config = HiFiGANConfig(
        in_channels=8, channels=16, upsample_rates=(4, 2), upsample_kernels=(8, 4), block_kernels=(3, 5, 7),
        block_dilations=((1, 2), (1, 2), (1, 3)),
    )  # fmt: skip
    generator = randomised(HiFiGAN(config))
    path = write(desk / "g" / "generator.safetensors", export_weights(hifigan.ORIGINAL_1, generator.state_dict()))
    about = {"num_mels": 8, "upsample_initial_channel": 16, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
             "resblock": "1", "resblock_kernel_sizes": [3, 5, 7],
             "resblock_dilation_sizes": [[1, 2], [1, 2], [1, 3]]}  # fmt: skip
    with pytest.raises(vivavoce.VivaError, match=r"config\.json"):
        vivavoce.load(path)
    (desk / "g" / "config.json").write_text(json.dumps(about))
    assert same(vivavoce.load(path), generator)

    voice = randomised(VITS(published_vits()))
    path = write(desk / "vits.safetensors", export_weights(vits.ORIGINAL, voice.state_dict()))
    loaded = vivavoce.load(path)
    assert isinstance(loaded, VITS) and same(loaded, voice)


def published_vits() -> VITSConfig:
    """A small VITS with what the authors' files imply: three kernels, dilations 1, 3, 5, kernels of twice the rate."""
    decoder = HiFiGANConfig(
        in_channels=12, channels=16, upsample_rates=(4, 4), upsample_kernels=(8, 8), block_kernels=(3, 7, 11),
        block_dilations=((1, 3, 5),) * 3, post_bias=False,
    )  # fmt: skip
    return replace(VITSConfig.tiny(), decoder=decoder, sample_rate=22_050)


def test_llama_from_a_transformers_folder(desk: Path) -> None:
    folder = desk / "llm"
    folder.mkdir()
    size = tokenizer(folder / "tokenizer.json", CHAT_TOKENS)
    config = replace(LlamaConfig.tiny(), vocab_size=size)
    model = Llama(config)
    randomised(model)
    heads = config.decoder.n_heads, config.decoder.n_kv_heads
    table = llama.with_head(llama.transformers(*heads), "model.embed_tokens.weight", "lm_head.weight", True)
    write(folder / "model.safetensors", export_weights(table, model.state_dict()))
    decoder = config.decoder
    about = {"model_type": "qwen2", "hidden_size": decoder.dim, "num_hidden_layers": decoder.n_layers,
             "num_attention_heads": decoder.n_heads, "num_key_value_heads": decoder.n_kv_heads,
             "head_dim": decoder.head_dim, "intermediate_size": decoder.ffn_dim, "rms_norm_eps": decoder.norm_eps,
             "max_position_embeddings": decoder.context, "vocab_size": size, "tie_word_embeddings": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    exact, text = vivavoce.load(folder, dtype="float32")
    tokens = torch.tensor([text.encode("hello")])
    assert torch.allclose(exact.logits(tokens), model.logits(tokens), atol=1e-5)
    rounded, _ = vivavoce.load(folder)
    assert not torch.equal(rounded.logits(tokens), exact.logits(tokens))
    assert torch.nn.functional.cosine_similarity(rounded.logits(tokens), exact.logits(tokens), dim=-1).min() > 0.98


def test_native_folders_by_name_and_path(desk: Path, tiny_cache: Path) -> None:
    assert isinstance(vivavoce.load("whisper-base"), WhisperRecognizer)
    assert isinstance(vivavoce.load("vits-joe", parts={"phonemes": "lexicon"}), VITSVoice)
    assert isinstance(vivavoce.load(tiny_cache / "models" / "silero-vad"), Silero)
    model, text = vivavoce.load("smollm2-135m-instruct")
    floats, _ = vivavoce.load("smollm2-135m-instruct", dtype="float32")
    tokens = torch.tensor([text.encode("good day")])
    assert torch.nn.functional.cosine_similarity(model.logits(tokens), floats.logits(tokens), dim=-1).min() > 0.98
    with pytest.raises(MissingWeightsError, match="viva pull qwen"):
        vivavoce.load("qwen2.5-coder-1.5b-instruct")
    with pytest.raises(UnknownNameError, match="no part 'voice'"):
        vivavoce.load("whisper-base", parts={"voice": None})
    with pytest.raises(UnknownNameError, match="no part"):
        vivavoce.load("silero-vad", parts={"x": 1})


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.stem)
def test_create_makes_random_models(row) -> None:
    size = next((name for name in row.sizes if name == "tiny-test"), next(iter(row.sizes)))
    model = vivavoce.create(row.stem, size, seed=3)
    assert not model.training and same(model, vivavoce.create(row.stem, size, seed=3))
    assert not same(model, vivavoce.create(row.stem, size, seed=4))
    with pytest.raises(UnknownNameError, match="no size"):
        vivavoce.create(row.stem, "gigantic")


# ---------------------------------------------------------------------------------------------------- verbs


def test_transcribe_takes_files_and_waves(desk: Path) -> None:
    wave = tone(5.0)
    soundfile.write("a.wav", wave, 16_000, subtype="FLOAT")
    seen, progress = [], []
    made = vivavoce.transcribe("a.wav", words=True, on_segment=seen.append, on_progress=progress.append)
    assert seen == list(made.segments) and made.words and progress[-1] == pytest.approx(5.0)
    assert made.models == ("whisper-base",) and made.duration == pytest.approx(5.0)
    assert vivavoce.transcribe(wave[:, 0], 16_000, words=True) == made
    assert vivavoce.transcribe(torch.from_numpy(wave.T.copy()), 16_000, words=True).text == made.text
    assert vivavoce.transcribe("a.wav", words=True) == made
    other = vivavoce.transcribe("a.wav", model="whisper-tiny.en", vad=False)
    assert other.language == "en"
    with pytest.raises(ConfigError, match="sample_rate"):
        vivavoce.transcribe(wave)
    with pytest.raises(AudioError, match="not numbers"):
        vivavoce.transcribe(np.full(100, np.nan), 16_000)
    with pytest.raises(AudioError, match=r"\(S,\)"):
        vivavoce.transcribe(np.zeros((2, 2, 2)), 16_000)


def test_a_long_file_is_read_as_it_is_written_down(desk: Path) -> None:
    """The reader is at most one batch of windows ahead of the writer, so memory does not grow."""
    soundfile.write("a.wav", np.tile(tone(10.0), (24, 1)), 16_000)
    read: list[float] = []
    ahead: list[float] = []
    vivavoce.transcribe("a.wav", on_progress=read.append, on_segment=lambda s: ahead.append(read[-1] - s.start))
    assert read[-1] == pytest.approx(240.0) and max(ahead) < 4 * 30 + 20


def test_speak_is_repeatable_and_timed(desk: Path) -> None:
    first = vivavoce.speak("Good morning.", phonemes="lexicon", seed=5)
    again = vivavoce.speak("Good morning.", phonemes="lexicon", seed=5)
    assert np.array_equal(first.wave, again.wave) and first.sample_rate == 8000
    assert [span.text for span in first.alignment] == ["Good", "morning"]
    assert first.alignment[-1].end_s <= first.duration_s
    slow = vivavoce.speak("Good morning.", phonemes="lexicon", seed=5, speed=0.5)
    assert slow.duration_s > 1.5 * first.duration_s
    with pytest.raises(ConfigError, match="nothing that can be spoken"):
        vivavoce.speak("...", phonemes="lexicon")


def test_models_are_loaded_once(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = api.recognizer("whisper-base")
    assert api.recognizer("whisper-base").model is one.model
    assert api.recognizer("whisper-base", vad=False).voice_activity is None
    assert api.recognizer("whisper-base", dtype="float32").model is not one.model
    assert api.open_voice("vits-joe", phonemes="lexicon") is api.open_voice("vits-joe", phonemes="lexicon")
    monkeypatch.setenv("VIVA_MODEL", "whisper-tiny.en")
    assert api.recognizer().name == "whisper-tiny.en"


def test_threads_follow_argument_and_environment(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert api.set_threads(2) == torch.get_num_threads() == 2
        assert api.set_threads() == torch.get_num_threads() == 1  # VIVA_THREADS
        monkeypatch.delenv("VIVA_THREADS")
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert api.set_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        with pytest.raises(ConfigError, match="whole number"):
            api.set_threads()
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert 1 <= api.set_threads() <= 4
    finally:
        torch.set_num_threads(before)


def test_models_and_inspect_say_what_there_is(desk: Path, tiny_cache: Path) -> None:
    found = {model.name: model for model in vivavoce.models()}
    assert found["whisper-base"].pulled and found["whisper-base"].room == "asr"
    looked = vivavoce.inspect(tiny_cache / "models" / "smollm2-135m-instruct")
    assert looked.system == "llama" and any(tensor.dtype == "int8" for tensor in looked.tensors)
    path = write(desk / "odd.safetensors", {"a.weight": torch.zeros(3, 4)})
    odd = vivavoce.inspect(path)
    assert odd.system is None and odd.format == "safetensors" and odd.n_parameters == 12
    for row in CATALOGUE:
        assert all(lines > 0 for _, lines in vivavoce.inspect(row.stem).stack)


# ---------------------------------------------------------------------------------------------------- conversions


def gguf(architecture: str) -> Checkpoint:
    """A small GGUF file in memory: matrices in blocks of four bits."""
    rng = np.random.default_rng(0)
    kind = TYPES[2]

    def blocks(rows: int, width: int) -> GGUFTensor:
        data = rng.integers(0, 256, (rows * width // kind.weights, kind.bytes), np.uint8)
        data[:, :2] = np.frombuffer(np.float16(0.05).tobytes(), np.uint8)
        return GGUFTensor((rows, width), kind, memoryview(data.tobytes()))

    def vector(size: int) -> GGUFTensor:
        return GGUFTensor((size,), TYPES[0], memoryview(rng.normal(1, 0.1, size).astype("<f4").tobytes()))

    entries = {"token_embd.weight": blocks(97, 32), "output_norm.weight": vector(32)}
    for i in range(2):
        shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
                  "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}  # fmt: skip
        entries |= {f"blk.{i}.{name}.weight": blocks(*shape) for name, shape in shapes.items()}
        entries |= {f"blk.{i}.{name}_norm.weight": vector(32) for name in ("attn", "ffn")}
        if architecture == "qwen2":
            entries |= {f"blk.{i}.attn_{name}.bias": vector(size) for name, size in (("q", 32), ("k", 16), ("v", 16))}
    about = {"general.architecture": architecture, "tokenizer.ggml.tokens": [str(i) for i in range(97)]}
    numbers = {"attention.head_count": 4, "attention.head_count_kv": 2, "embedding_length": 32, "block_count": 2,
               "feed_forward_length": 64, "context_length": 64, "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    about |= {f"{architecture}.{name}": value for name, value in numbers.items()}
    return Checkpoint("gguf", Path("toy.gguf"), GGUFFile(3, about, entries), about)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_rounding_to_int8_row_by_row_is_rounding_the_floats(architecture: str) -> None:
    checkpoint = gguf(architecture)
    config, floats = import_llama(checkpoint)
    assert config.decoder == DecoderConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=64,
        context=64,
        qkv_bias=architecture == "qwen2",
    )
    _, rounded = import_int8(checkpoint)
    assert floats.pop("head.weight") is not None  # tied: the embedding's rows serve both
    assert set(rounded) == set(int8(floats))
    for key, value in floats.items():
        if value.dim() == 2:
            rows, scale = quantize_rows(value)
            assert torch.equal(rounded[key], rows) and torch.equal(rounded[f"{key}_scale"], scale), key
        else:
            assert torch.equal(rounded[key], value)


def test_parts_are_written_as_one_file(tmp_path: Path) -> None:
    checkpoint = gguf("qwen2")
    config, whole = import_int8(checkpoint)
    shapes = conversions.integer_shapes(config)
    conversions.write_parts(tmp_path / "a.safetensors", shapes, iter([dict(list(whole.items())[::-1])]))
    from safetensors.torch import load_file

    back = load_file(tmp_path / "a.safetensors")
    assert set(back) == set(whole) and all(torch.equal(back[key], whole[key]) for key in whole)


def test_whisper_and_silero_are_converted_once(desk: Path) -> None:
    folder = desk / "published"
    folder.mkdir()
    config = whisper_config(tokenizer(folder / "tokenizer.json", WHISPER_TOKENS))
    model = randomised(Whisper(config))
    path = write(folder / "model.safetensors", export_weights(whisper.OPENAI, model.state_dict()))
    (folder / "config.json").write_text(json.dumps({"encoder_attention_heads": 3, "decoder_attention_heads": 3}))
    files = {item.name: item for item in folder.iterdir()}
    conversions.convert_whisper(path, files, desk / "w")
    assert open_native(desk / "w").tensors()["encoder.conv1.weight"].dtype == torch.float16
    loaded = vivavoce.load(desk / "w", dtype="float32")
    assert torch.allclose(loaded.model.encoder.conv1.weight, model.encoder.conv1.weight, atol=1e-3)

    both = {
        **export_weights(silero.TORCHSCRIPT, randomised(Silero(SileroConfig()), 1).state_dict()),
        **export_weights(silero.TORCHSCRIPT_8K, randomised(Silero(SileroConfig.narrowband()), 2).state_dict()),
    }
    path = write(desk / "vad.safetensors", both)
    conversions.convert_silero(path, {}, desk / "s")
    assert same(vivavoce.load(desk / "s"), randomised(Silero(SileroConfig()), 1))


def test_a_piper_configuration_becomes_settings(tmp_path: Path) -> None:
    about = {"audio": {"sample_rate": 8000}, "espeak": {"voice": "en-us"}, "inference": {"noise_w": 0.5},
             "phoneme_id_map": {"_": [0], "a": [1, 2]}, "speaker_id_map": {}}  # fmt: skip
    (tmp_path / "v.onnx.json").write_text(json.dumps(about))
    made = conversions.voice_settings(tmp_path / "v.onnx.json")
    assert set(made) == set(voice_settings()) and made["duration_noise_scale"] == 0.5 and made["symbols"]["a"] == [1, 2]
    (tmp_path / "v.onnx.json").write_text(json.dumps({"audio": {}}))
    with pytest.raises(vivavoce.VivaError, match="Piper configuration"):
        conversions.voice_settings(tmp_path / "v.onnx.json")


def test_how_a_chat_is_written_is_told_by_its_tokens() -> None:
    assert conversions.chat_settings({"<|im_start|>": 1, "<|im_end|>": 2})["chat"] == "chatml"
    assert conversions.chat_settings({"</s>": 2}) == {"chat": None, "stop": ["</s>"]}


def test_everything_that_is_offered_is_there() -> None:
    for name in vivavoce.__all__:
        assert callable(getattr(vivavoce, name)), name
    assert set(vivavoce.__all__) <= set(dir(vivavoce))
    with pytest.raises(AttributeError):
        _ = vivavoce.nothing


def test_an_empty_cache_names_one_command(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIVA_CACHE", str(desk / "none"))
    soundfile.write("a.wav", tone(0.5), 16_000)
    with pytest.raises(MissingWeightsError, match="viva pull starter"):
        vivavoce.transcribe("a.wav")
    assert not (desk / "none").exists()


@pytest.mark.parametrize("name", ["whisper-base", "vits-joe", "smollm2-135m-instruct"])
def test_loading_does_not_import_the_compiler(desk: Path, name: str) -> None:
    """Which takes longer than everything else together, and is drawn in by some operations on the meta device."""
    code = f"import sys, vivavoce; vivavoce.load({name!r}); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_gpu_is_refused_where_it_would_fail_later(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU"):
        vivavoce.load("whisper-base", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="recognisers run on the CPU only"):
        vivavoce.load("whisper-base", device="cuda")
    with pytest.raises(ConfigError, match="int8 layers run on a CPU only"):
        vivavoce.load("smollm2-135m-instruct", device="cuda", dtype="int8")


BAD_LLAMA = [
    ("{", "not JSON"),
    ("[]", "not a JSON object"),
    ({"num_attention_heads": None}, "unknown form"),
    ({"hidden_size": [24]}, "unknown form"),
    ({"num_attention_heads": 0}, "unknown form|impossible size"),
    ({"num_hidden_layers": 1 << 40}, "impossible size"),
    ({"num_key_value_heads": 2}, "impossible size"),
    ({"intermediate_size": ...}, "lacks 'intermediate_size'"),
    ({"model_type": "mamba"}, "of the type 'mamba'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'.*not supported"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'.*not supported"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn'.*not supported"),
]


@pytest.mark.parametrize(("change", "message"), BAD_LLAMA, ids=str)
def test_a_bad_llama_configuration_is_one_sentence(tmp_path: Path, change, message: str) -> None:
    about = {"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
             "num_key_value_heads": 1, "intermediate_size": 40, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
             "vocab_size": 97, "rope_scaling": None}  # fmt: skip
    path = tmp_path / "config.json"
    checkpoint = Checkpoint("safetensors", tmp_path / "m.safetensors", {}, {}, {"config.json": path})
    path.write_text(json.dumps(about))
    assert read_config(checkpoint).decoder.n_kv_heads == 1
    if isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps({k: v for k, v in {**about, **change}.items() if v is not ...}))
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(checkpoint)
    assert "\n" not in str(error.value)


def test_a_gguf_file_without_a_size_or_with_scaled_positions_is_one_sentence() -> None:
    checkpoint = gguf("llama")
    assert isinstance(checkpoint.metadata, dict)
    checkpoint.metadata["llama.rope.scaling.type"] = "none"
    assert read_config(checkpoint).decoder.dim == 32
    checkpoint.metadata["llama.rope.scaling.type"] = "yarn"
    with pytest.raises(CheckpointError, match=r"'yarn'.*not supported"):
        read_config(checkpoint)
    del checkpoint.metadata["llama.rope.scaling.type"], checkpoint.metadata["llama.block_count"]
    with pytest.raises(CheckpointError, match=r"lacks 'llama\.block_count'"):
        read_config(checkpoint)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "not JSON"),
        ("config.json", '{"encoder_attention_heads": null}', "unknown form"),
        ("config.json", '{"encoder_attention_heads": 0}', "number of heads"),
        ("config.json", '{"encoder_attention_heads": 3, "decoder_attention_heads": 5}', "number of heads"),
        ("generation_config.json", '{"alignment_heads": [1, 2]}', "unknown form"),
        ("generation_config.json", '{"alignment_heads": "all"}', "unknown form"),
        ("generation_config.json", '{"alignment_heads": [[99, 0]]}', "alignment heads"),
    ],
)
def test_a_bad_whisper_configuration_is_one_sentence(desk: Path, name: str, text: str, message: str) -> None:
    folder = desk / "published"
    folder.mkdir()
    model = randomised(Whisper(whisper_config(tokenizer(folder / "tokenizer.json", WHISPER_TOKENS))))
    write(folder / "model.safetensors", export_weights(whisper.OPENAI, model.state_dict()))
    (folder / "config.json").write_text('{"encoder_attention_heads": 3, "decoder_attention_heads": 3}')
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=message) as error:
        vivavoce.load(folder)
    assert "\n" not in str(error.value)


def test_a_tied_head_is_stored_once_and_read_from_both_forms(tmp_path: Path) -> None:
    model = randomised(Llama(LlamaConfig.tiny()))
    tokens = torch.arange(6)[None]
    for kind, state in (("float", model.state_dict()), ("int8", int8(model.state_dict()))):
        save_native(tmp_path / kind, "llama", model.config, state)
        about = open_native(tmp_path / kind)
        assert not [key for key in about.tensors() if key.startswith("head.")]
        once = build(Llama, model.config, about.tensors())
        both = build(Llama, model.config, {key: value.clone() for key, value in state.items()})  # the older form
        assert torch.equal(once(tokens), both(tokens))
        if kind == "float":
            assert once.head.weight is once.embedding.weight
            assert sum(p.numel() for p in once.parameters()) == sum(p.numel() for p in model.parameters())
        else:
            assert isinstance(once.head, Int8Linear)
        found = vivavoce.inspect(tmp_path / kind)
        assert found.n_parameters == sum(p.numel() for p in model.parameters())
    own = randomised(Llama(replace(model.config, tied=False)))
    save_native(tmp_path / "own", "llama", own.config, own.state_dict())
    assert same(build(Llama, own.config, open_native(tmp_path / "own").tensors()), own)
    with pytest.raises(CheckpointError, match="head"):
        build(
            Llama, own.config, {k: v for k, v in own.state_dict().items() if "embedding" not in k and "head" not in k}
        )


def test_a_converted_whisper_and_llama_store_their_heads_once(desk: Path) -> None:
    config, whole = import_int8(gguf("qwen2"))
    assert config.tied and "embedding.weight" in whole and "head.weight" not in whole
    folder = desk / "published"
    folder.mkdir()
    model = randomised(Whisper(whisper_config(tokenizer(folder / "tokenizer.json", WHISPER_TOKENS))))
    path = write(folder / "model.safetensors", export_weights(whisper.OPENAI, model.state_dict()))
    (folder / "config.json").write_text('{"encoder_attention_heads": 3, "decoder_attention_heads": 3}')
    conversions.convert_whisper(path, {item.name: item for item in folder.iterdir()}, desk / "w")
    assert "decoder.head.weight" not in open_native(desk / "w").tensors()
    loaded = vivavoce.load(desk / "w", dtype="float32")
    assert loaded.model.decoder.head.weight is loaded.model.decoder.embedding.weight


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("whisper-base", "int4"), ("vits-joe", "int8"), ("vits-joe", "int4"), ("silero-vad", "int8"),
     ("silero-vad", "int4")],
)  # fmt: skip
def test_a_dtype_that_a_system_does_not_have_is_one_sentence(desk: Path, name: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"the dtype must be .*float32, not '{dtype}'; or leave it out$"):
        vivavoce.load(name, dtype=dtype)


def test_a_published_detector_has_no_integers_either(desk: Path) -> None:
    model = randomised(Silero(SileroConfig()))
    file = write(desk / "s.safetensors", export_weights(silero.SAFETENSORS, model.state_dict()))
    with pytest.raises(ConfigError, match="the dtype must be float32, not 'int8'"):
        vivavoce.load(file, dtype="int8")
    assert isinstance(vivavoce.load(file, dtype="float32"), Silero)


def test_a_pulled_text_model_of_four_bits_in_every_dtype(desk: Path, tiny_cache: Path) -> None:
    folder = desk / "four"
    folder.mkdir()
    config = replace(LlamaConfig.tiny(), vocab_size=tokenizer(folder / "tokenizer.json", CHAT_TOKENS))
    state = int8(randomised(Llama(config)).state_dict())
    name = next(key for key, value in state.items() if value.dim() == 2 and key.endswith(".down.weight"))
    rows = state[name].shape[0]
    config = replace(config, decoder=replace(config.decoder, ffn_dim=64))
    state = int8(randomised(Llama(config)).state_dict())
    levels = torch.randint(0, 16, (rows, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tiles = pack_tiles(levels, torch.full((rows, 2), 0.02), torch.full((rows, 2), -0.15))
    state[name.replace("weight", "tiles")] = tiles
    del state[name], state[f"{name}_scale"]
    save_native(folder, "llama", config, state, {"chat": "chatml"})
    tokens = torch.tensor([list(range(20))])
    layer = name.removesuffix(".weight")
    found = {dtype: vivavoce.load(folder, dtype=dtype).model for dtype in (None, "int4", "int8", "float32")}
    kinds = {dtype: type(model.get_submodule(layer)) for dtype, model in found.items()}
    assert kinds == {None: Int4Linear, "int4": Int4Linear, "int8": Int8Linear, "float32": torch.nn.Linear}
    exact = found["float32"].logits(tokens)
    for model in found.values():
        assert torch.nn.functional.cosine_similarity(model.logits(tokens), exact, dim=-1).min() > 0.98
    with pytest.raises(ConfigError, match="is not stored in 4 bits; leave out the dtype"):
        vivavoce.load("smollm2-135m-instruct", dtype="int4")
    save_native(folder, "llama", config, state | {name.replace("weight", "tiles"): tiles[:-1]})
    for dtype in (None, "int8", "float32"):
        with pytest.raises(CheckpointError, match="run  viva rm four  and  viva pull four"):
            vivavoce.load(folder, dtype=dtype)
