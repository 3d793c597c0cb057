"""The table of all systems. Strings only, nothing heavy is imported: commands, docs and tests derive from it.

A row is one system (one stem: ``git ls-files '*whisper*'`` lists it). What can be pulled for it is named in ``weights``
and described in :mod:`vivavoce.checkpoints.sources`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vivavoce.checkpoints import store
from vivavoce.checkpoints.sources import SOURCES
from vivavoce.errors import UnknownNameError, nearest


@dataclass(frozen=True)
class System:
    """One system: where its class lies, what it is for, which sizes and published layouts it knows.

    ``streams`` is "exact" (any cutting of the input gives the same output), "chunked" (as the reference run chunk by
    chunk) or "none"; ``streaming`` says what streams and how. ``modules`` are the brick files of its stack; of its
    weights, ``weights`` can be pulled and ``ships`` come with the package; ``lineage`` and ``parts`` are the systems of
    the same layer that it builds on.
    """

    stem: str
    title: str
    room: str
    model: str  # module:Class
    config: str  # module:Class
    verbs: tuple[str, ...]
    sizes: dict[str, str]  # name -> call on the configuration class, "method" or "method:argument"
    layouts: dict[str, str]  # published layout -> module:NAME of its table
    modules: tuple[str, ...]
    streams: Literal["exact", "chunked", "none"]
    streaming: str
    paper: str
    licence: str
    weights: tuple[str, ...] = ()
    ships: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


_LAYOUTS = "vivavoce.checkpoints.layouts"

CATALOGUE: tuple[System, ...] = (
    System(
        stem="whisper",
        title="Whisper",
        room="asr",
        model="vivavoce.asr.whisper:Whisper",
        config="vivavoce.asr.whisper:WhisperConfig",
        verbs=("transcribe",),
        sizes={
            "tiny-test": "tiny",
            **{
                name: f"sized:{name}"
                for name in (
                    *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
                    *("large", "large-v2", "large-v3", "large-v3-turbo"),
                )
            },
        },
        layouts={
            "openai (.pt)": f"{_LAYOUTS}.whisper:OPENAI",
            "transformers": f"{_LAYOUTS}.whisper:TRANSFORMERS",
            "CTranslate2 (model.bin)": f"{_LAYOUTS}.whisper:CTRANSLATE2",
        },
        modules=(
            "vivavoce.asr.whisper",
            "vivavoce.asr.whisper_tokens",
            "vivavoce.asr.whisper_decoding",
            "vivavoce.asr.whisper_timing",
            "vivavoce.asr.whisper_recognizer",
            "vivavoce.audio.mel",
            "vivavoce.nn.encoder",
            "vivavoce.nn.attention",
            "vivavoce.align.dtw",
        ),
        streams="chunked",
        streaming="windows of at most 30 s, cut at pauses",
        paper="Radford et al. 2022, arXiv 2212.04356",
        licence="MIT",
        weights=("whisper-base", "whisper-tiny.en"),
        parts=("silero",),
    ),
    System(
        stem="silero",
        title="Silero VAD",
        room="detect",
        model="vivavoce.detect.silero:Silero",
        config="vivavoce.detect.silero:SileroConfig",
        verbs=("transcribe", "talk"),
        sizes={"16k": "", "8k": "narrowband", "tiny-test": "tiny"},
        layouts={
            "TorchScript, 16 kHz": f"{_LAYOUTS}.silero:TORCHSCRIPT",
            "TorchScript, 8 kHz": f"{_LAYOUTS}.silero:TORCHSCRIPT_8K",
            "safetensors": f"{_LAYOUTS}.silero:SAFETENSORS",
        },
        modules=("vivavoce.detect.silero", "vivavoce.detect.segments"),
        streams="exact",
        streaming="probabilities every 32 ms, no look-ahead",
        paper="github.com/snakers4/silero-vad, version 6",
        licence="MIT",
        weights=("silero-vad",),
    ),
    System(
        stem="vits",
        title="VITS",
        room="tts",
        model="vivavoce.tts.vits:VITS",
        config="vivavoce.tts.vits:VITSConfig",
        verbs=("speak", "talk"),
        sizes={"ljspeech": "ljspeech", "vctk": "vctk", "piper-medium": "piper_medium", "tiny-test": "tiny"},
        layouts={
            "authors' .pth": f"{_LAYOUTS}.vits:ORIGINAL",
            "transformers (MMS)": f"{_LAYOUTS}.vits:TRANSFORMERS",
            "Piper (.onnx)": f"{_LAYOUTS}.vits:PIPER",
        },
        modules=(
            "vivavoce.tts.vits",
            "vivavoce.tts.vits_voice",
            "vivavoce.text.normalize",
            "vivavoce.text.phonemes",
            "vivavoce.nn.coupling",
            "vivavoce.nn.splines",
            "vivavoce.nn.wavenet",
            "vivavoce.nn.alignment",
            "vivavoce.nn.hifigan",
            "vivavoce.nn.streaming",
        ),
        streams="exact",
        streaming="the wave, piece by piece, behind the whole prior of a sentence",
        paper="Kim, Kong, Son 2021, arXiv 2106.06103",
        licence="MIT; each voice has its own",
        weights=("vits-joe",),
        parts=("hifigan",),
    ),
    System(
        stem="hifigan",
        title="HiFi-GAN",
        room="vocoders",
        model="vivavoce.nn.hifigan:HiFiGAN",
        config="vivavoce.nn.hifigan:HiFiGANConfig",
        verbs=(),
        sizes={"v1": "", "v2": "v2", "v3": "v3", "tiny-test": "tiny"},
        layouts={
            "authors' generator, blocks 1": f"{_LAYOUTS}.hifigan:ORIGINAL_1",
            "authors' generator, blocks 2": f"{_LAYOUTS}.hifigan:ORIGINAL_2",
            "ParallelWaveGAN": f"{_LAYOUTS}.hifigan:PARALLEL_WAVEGAN",
        },
        modules=("vivavoce.vocoders.hifigan", "vivavoce.nn.hifigan", "vivavoce.nn.streaming"),
        streams="exact",
        streaming="mel frames to samples, with the look-ahead of its kernels",
        paper="Kong, Kim, Bae 2020, arXiv 2010.05646",
        licence="MIT",
    ),
    System(
        stem="glm4_tokenizer",
        title="GLM-4-Voice speech tokenizer",
        room="codecs",
        model="vivavoce.codecs.glm4_tokenizer:GLM4Tokenizer",
        config="vivavoce.codecs.glm4_tokenizer:GLM4TokenizerConfig",
        verbs=("talk",),
        sizes={"published": "", "nano": "nano", "tiny-test": "tiny"},
        layouts={"transformers": f"{_LAYOUTS}.glm4_tokenizer:TRANSFORMERS"},
        modules=(
            "vivavoce.codecs.glm4_tokenizer",
            "vivavoce.nn.encoder",
            "vivavoce.nn.attention",
            "vivavoce.nn.vector_quantizer",
            "vivavoce.nn.streaming",
            "vivavoce.audio.mel",
        ),
        streams="exact",
        streaming="block by block (nano 1.28 s, published 4 s); exact with a fixed ceiling of the mel, as nano has it",
        paper="Zeng et al. 2024, arXiv 2412.02612",
        licence="Apache-2.0",
    ),
    System(
        stem="glm4_decoder",
        title="GLM-4-Voice speech decoder",
        room="codecs",
        model="vivavoce.codecs.glm4_decoder:GLM4Decoder",
        config="vivavoce.codecs.glm4_decoder:GLM4DecoderConfig",
        verbs=(),
        sizes={"published": "published", "nano": "nano", "tiny-test": "tiny_causal"},
        layouts={"flow.pt": f"{_LAYOUTS}.glm4_decoder:PUBLISHED"},
        modules=(
            "vivavoce.codecs.glm4_decoder",
            "vivavoce.codecs.glm4_decoder_stream",
            "vivavoce.nn.relative",
            "vivavoce.nn.unet",
            "vivavoce.nn.sliding",
            "vivavoce.nn.flow_matching",
            "vivavoce.nn.streaming",
        ),
        streams="exact",
        streaming="the causal sizes token by token, nothing withheld; the published one call by call as its authors do",
        paper="Zeng et al. 2024, arXiv 2412.02612; flow: Du et al. 2024, arXiv 2407.05407",
        licence="Apache-2.0",
    ),
    System(
        stem="hift",
        title="HiFT",
        room="vocoders",
        model="vivavoce.vocoders.hift:HiFT",
        config="vivavoce.vocoders.hift:HiFTConfig",
        verbs=("talk",),
        sizes={"published": "published", "nano": "nano", "tiny-test": "tiny"},
        layouts={"hift.pt": f"{_LAYOUTS}.hift:PUBLISHED"},
        modules=("vivavoce.vocoders.hift", "vivavoce.nn.hifigan", "vivavoce.nn.streaming"),
        streams="exact",
        streaming="mel frames to samples, with the look-ahead of its kernels (nano: 7 frames of 16 ms)",
        paper="Li, Han, Mesgarani 2023, arXiv 2309.09493; sizes of Du et al. 2024, arXiv 2407.05407",
        licence="Apache-2.0",
    ),
    System(
        stem="vita_audio",
        title="VITA-Audio",
        room="dialogue",
        model="vivavoce.dialogue.vita_audio:VITAAudio",
        config="vivavoce.dialogue.vita_audio:VITAAudioConfig",
        verbs=("talk", "transcribe", "speak"),
        sizes={"boost": "published", "stage-2": "published:1", "stage-1": "published:0", "tiny-test": "tiny"},
        layouts={"transformers": f"{_LAYOUTS}.vita_audio:transformers"},
        modules=(
            "vivavoce.dialogue.vita_audio",
            "vivavoce.dialogue.vita_audio_prompts",
            "vivavoce.dialogue.vita_audio_writing",
            "vivavoce.dialogue.vita_audio_grammar",
            "vivavoce.dialogue.vita_audio_policies",
            "vivavoce.dialogue.vita_audio_cycles",
            "vivavoce.dialogue.vita_audio_engine",
            "vivavoce.dialogue.vita_audio_session",
            "vivavoce.dialogue.vita_audio_conversation",
            "vivavoce.dialogue.vita_audio_start",
            "vivavoce.dialogue.vita_audio_files",
            "vivavoce.vita_audio_verbs",
            "vivavoce.nn.decoder",
            "vivavoce.nn.attention",
            "vivavoce.text.tokenizer",
        ),
        streams="exact",
        streaming="token by token; sound in by blocks of 1.28 s, out by blocks of 8 codes",
        paper="Long et al. 2025, arXiv 2505.03739",
        licence="Apache-2.0",
        ships=("nano-talk",),
        parts=("glm4_tokenizer", "glm4_decoder", "hift"),
    ),
    System(
        stem="sensevoice",
        title="SenseVoice",
        room="asr",
        model="vivavoce.asr.sensevoice:SenseVoice",
        config="vivavoce.asr.sensevoice:SenseVoiceConfig",
        verbs=(),
        sizes={"small": "published", "tiny-test": "tiny"},
        layouts={"FunASR (model.pt, am.mvn)": f"{_LAYOUTS}.sensevoice:PUBLISHED"},
        modules=("vivavoce.asr.sensevoice", "vivavoce.audio.kaldi", "vivavoce.nn.attention"),
        streams="none",
        streaming="a clip is heard when it is over: attention is full",
        paper="An et al. 2024, arXiv 2407.04051",
        licence="the authors' model licence (FunASR)",
    ),
    System(
        stem="vita_audio_plus",
        title="VITA-Audio-Plus",
        room="dialogue",
        model="vivavoce.dialogue.vita_audio_plus:VITAAudioPlus",
        config="vivavoce.dialogue.vita_audio_plus:VITAAudioPlusConfig",
        verbs=(),
        sizes={"vanilla": "published", "boost": "published:10", "tiny-test": "tiny"},
        layouts={"transformers": f"{_LAYOUTS}.vita_audio:plus"},
        modules=(
            "vivavoce.dialogue.vita_audio_plus",
            "vivavoce.dialogue.vita_audio",
            "vivavoce.dialogue.vita_audio_prompts",
            "vivavoce.dialogue.vita_audio_writing",
            "vivavoce.asr.sensevoice",
            "vivavoce.nn.decoder",
        ),
        streams="exact",
        streaming="token by token; a clip of the question is heard when it is over",
        paper="Long et al. 2025, arXiv 2505.03739",
        licence="Apache-2.0; SenseVoice inside: its authors' model licence",
        lineage=("vita_audio",),
        parts=("sensevoice", "glm4_tokenizer", "glm4_decoder", "hift"),
    ),
    System(
        stem="llama",
        title="Llama and Qwen2",
        room="lm",
        model="vivavoce.lm.llama:Llama",
        config="vivavoce.lm.llama:LlamaConfig",
        verbs=("talk",),
        sizes={
            "smollm2-135m": "smollm2_135m",
            "qwen2.5-0.5b": "qwen25:0.5b",
            "qwen2.5-1.5b": "qwen25:1.5b",
            "qwen2.5-7b": "qwen25:7b",
            "tiny-test": "tiny",
        },
        layouts={
            "transformers": f"{_LAYOUTS}.llama:transformers",
            "GGUF": f"{_LAYOUTS}.llama:gguf",
        },
        modules=(
            "vivavoce.lm.llama",
            "vivavoce.nn.decoder",
            "vivavoce.nn.attention",
            "vivavoce.nn.quantized",
            "vivavoce.text.tokenizer",
        ),
        streams="exact",
        streaming="token by token",
        paper="arXiv 2302.13971, arXiv 2407.10671",
        licence="Apache-2.0 for the weights named here",
        weights=("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"),
    ),
)

SHIPPED: dict[str, Path] = {"nano-talk": Path(__file__).with_name("nano") / "talk"}


def is_shipped(name: str) -> bool:
    """Whether weights of this name are part of this copy of the package."""
    return name in SHIPPED and SHIPPED[name].is_dir()


SYSTEMS: dict[str, System] = {system.stem: system for system in CATALOGUE}


def system(stem: str) -> System:
    """The row of a stem; UnknownNameError offers the nearest."""
    if stem not in SYSTEMS:
        raise UnknownNameError(f"no system is called {stem!r}{nearest(stem, SYSTEMS)}")
    return SYSTEMS[stem]


def system_of(weights: str) -> str:
    """The stem that published weights belong to, such as "whisper" for "whisper-base"."""
    for row in CATALOGUE:
        if weights in row.weights:
            return row.stem
    names = [name for row in CATALOGUE for name in row.weights]
    raise UnknownNameError(
        f"no published weights are called {weights!r}{nearest(weights, names)}; `viva models` lists them"
    )


@dataclass(frozen=True)
class ModelInfo:
    """One checkpoint: what it is, its download in bytes (0 where it ships), and whether it is at hand."""

    name: str
    system: str
    room: str
    verbs: tuple[str, ...]
    bytes: int
    pulled: bool
    licence: str
    origin: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def models() -> list[ModelInfo]:
    """All checkpoints: those that come with the package, then those that ``viva pull`` knows."""
    here = store.installed()
    found = [
        ModelInfo(
            name, row.stem, row.room, row.verbs, 0, True, "Apache-2.0; CC BY-SA 4.0 where its card says so",
            "trained by this project", f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.0f} MB, ships",
        )
        for row in CATALOGUE for name in row.ships if is_shipped(name) and (folder := SHIPPED[name])
    ]  # fmt: skip
    for name, source in SOURCES.items():
        row = system(system_of(name))
        found.append(
            ModelInfo(
                name,
                row.stem,
                row.room,
                row.verbs,
                source.bytes,
                name in here,
                source.licence,
                source.origin,
                source.note,
            )
        )
    return found


def reference(path: str):
    """The object that ``module:NAME`` names."""
    import importlib

    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
