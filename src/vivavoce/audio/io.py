"""Sound in and out: files of any length block by block, whole waves, standard streams, microphone, loudspeaker.

    file -> blocks (C, S) -> mean over channels -> soxr stream -> mono float32 in [-1, 1] at the wanted rate

libsndfile reads wav, flac, ogg, opus, mp3 and their kin; what it does not know (mp4, m4a, webm, aac) goes through PyAV.
Each fault of a file is one :class:`~vivavoce.errors.AudioError`. Memory does not grow with the length of a file.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from vivavoce.errors import AudioError, MissingExtraError, nearest, require

RATES = (1_000, 768_000)  # Hz; anything outside is a damaged header
MAX_WHOLE = 1 << 29  # samples that `load` holds at once: nine hours at 16 kHz
MAX_BLOCK = 1 << 22  # samples of all channels read at once
UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # what a stream writes into its header

# The demuxers that PyAV may use: plain containers, none that follows references to other files.
_CONTAINERS = "mov,matroska,webm,aac,mp3,ogg,flac,wav,asf,avi,mpegts,mpeg,flv,amr,aiff,caf,ac3,eac3,au"
_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_FORMAT_RATES = {
    ".opus": (8_000, 12_000, 16_000, 24_000, 48_000),
    ".mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file says of itself: seconds (0 where it does not say), samples a second, channels, container."""

    duration: float
    sample_rate: int
    channels: int
    format: str


# ---------------------------------------------------------------------------------------------------- reading


def info(path: str | Path) -> AudioInfo:
    """Length, rate, channels and format of a sound file; AudioError where it is none."""
    source = _open(_file(path))
    with closing(source):
        return source.info


def read_blocks(path: str | Path, sample_rate: int, seconds: float = 10.0) -> Iterator[Tensor]:
    """A sound file as mono blocks (S,) of at most about ``seconds``; ``-`` is standard input.

    The file is opened at once, so that a bad one is told before the first block.
    """
    return _resampled(_open_any(path), sample_rate, seconds)


def load(path: str | Path, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """A whole file as a mono wave (S,) and its rate: its own, or ``sample_rate``."""
    source = _open_any(path)
    rate = sample_rate or source.info.sample_rate
    pieces, total = [], 0
    for block in _resampled(source, rate, 10.0):
        total += block.numel()
        if total > MAX_WHOLE:
            raise AudioError(f"{_name(path)} is too long to hold whole; cut it, or read it with read_blocks")
        pieces.append(block)
    return torch.cat(pieces), rate


def _open_any(path: str | Path) -> _SoundFile | _Container:
    return _open_stdin() if str(path) == "-" else _open(_file(path))


def _file(path: str | Path) -> Path:
    if path == "":  # which Path would take for the working folder
        raise AudioError("the file name is empty; give a sound file")
    return Path(path)


def _resampled(source: _SoundFile | _Container, sample_rate: int, seconds: float) -> Iterator[Tensor]:
    """Mono blocks at the wanted rate; closes the source at the end."""
    rate = source.info.sample_rate
    stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    size = max(1, min(math.ceil(seconds * rate), MAX_BLOCK // source.info.channels))
    total = 0
    with closing(source):
        for block in source.blocks(size):
            total += block.size
            if not np.isfinite(block).all():
                raise AudioError(f"{source.name} holds samples that are not numbers (NaN or infinite); export it again")
            mono = np.ascontiguousarray(block.mean(axis=0, dtype=np.float32) if len(block) > 1 else block[0])
            made = mono if stream is None else stream.resample_chunk(mono)
            if made.size:
                yield torch.from_numpy(np.ascontiguousarray(made))
        if not total:
            raise AudioError(f"{source.name} holds no sound; give a file that is not empty")
        last = np.zeros(0, np.float32) if stream is None else stream.resample_chunk(np.zeros(0, np.float32), last=True)
        if last.size:
            yield torch.from_numpy(np.ascontiguousarray(last))


def _name(path: str | Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def _open_stdin() -> _SoundFile | _Container:
    """Standard input, kept in a scratch file: libraries need to seek."""
    scratch = tempfile.TemporaryFile(prefix="viva-")  # noqa: SIM115 (closed by the source)
    shutil.copyfileobj(sys.stdin.buffer, scratch, 1 << 20)
    size = scratch.tell()
    scratch.seek(0)
    if not size:
        scratch.close()
        raise AudioError("standard input holds no sound; pipe a sound file into this command")
    return _open_file("standard input", scratch, size)


def _open(path: Path) -> _SoundFile | _Container:
    if path.is_dir():
        raise AudioError(f"{path} is a folder; give a sound file, or a pattern such as {path}/*.wav")
    if not path.exists():
        raise AudioError(f"there is no file {path}{_neighbour(path)}; check the path")
    try:
        file = path.open("rb")
    except OSError as error:
        raise AudioError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    size = path.stat().st_size
    if not size and path.is_file():
        file.close()
        raise AudioError(f"{path} is empty; give a sound file")
    return _open_file(str(path), file, size)


def _neighbour(path: Path) -> str:
    try:
        return nearest(path.name, [item.name for item in path.parent.iterdir()])
    except OSError:
        return ""


def _open_file(name: str, file: BinaryIO, size: int) -> _SoundFile | _Container:
    """libsndfile first, then PyAV for what it does not know."""
    try:
        _check_wav_length(name, file, size)
        try:
            return _SoundFile(name, file)
        except soundfile.LibsndfileError:
            file.seek(0)
        return _Container(name, file)
    except BaseException:
        file.close()
        raise


def _check_wav_length(name: str, file: BinaryIO, size: int) -> None:
    """libsndfile reads a wav that was cut off as if it were whole, so compare its header with the file."""
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        position = 12
        while position + 8 <= size:
            file.seek(position)
            kind, length = struct.unpack("<4sI", file.read(8))
            if kind == b"data":
                left = size - position - 8
                if length not in UNKNOWN_SIZES and length > left:
                    raise AudioError(f"{name} is cut off: {left} of {length} bytes are there; copy it again")
                break
            position += 8 + length + length % 2
        else:
            raise AudioError(f"{name} is cut off before its sound begins; copy it again")
    file.seek(0)


def _check_rate(name: str, rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name} claims {rate} samples a second, which no recording has; export it again")
    if channels < 1:
        raise AudioError(f"{name} has no channels; give a sound file")


class _SoundFile:
    """A file that libsndfile reads."""

    def __init__(self, name: str, file: BinaryIO):
        self.name, self._file = name, file
        self._sound = soundfile.SoundFile(file)
        sound = self._sound
        _check_rate(name, sound.samplerate, sound.channels)
        known = 0 <= sound.frames < 1 << 62
        duration = sound.frames / sound.samplerate if known else 0.0
        self.info = AudioInfo(duration, sound.samplerate, sound.channels, sound.format)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """(C, S) float32."""
        read, whole = 0, self._sound.format in ("WAV", "FLAC", "AIFF")
        while True:
            try:
                block = self._sound.read(size, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError(
                    f"{self.name} is damaged {read / self.info.sample_rate:.1f} s in; copy it again"
                ) from error
            if not len(block):
                break
            read += len(block)
            yield block.T
        if whole and self.info.duration and read < self._sound.frames:
            raise AudioError(f"{self.name} is cut off after {read / self.info.sample_rate:.1f} s; copy it again")

    def close(self) -> None:
        self._sound.close()
        self._file.close()


class _Container:
    """A file that PyAV reads; the first sound track counts."""

    def __init__(self, name: str, file: BinaryIO):
        self.name, self._file = name, file
        foreign = f"{name} is no sound file that can be read; give wav, flac, ogg, opus or mp3"
        try:
            av = require("av", "media", "reading mp4, m4a, webm and aac")
        except MissingExtraError as error:
            raise AudioError(f"{foreign}, or for mp4, m4a, webm and aac run  pip install 'vivavoce[media]'") from error
        self._av: Any = av
        try:
            options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "pipe"}
            self._container = av.open(file, options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"{foreign}, mp4, m4a, webm or aac") from error
        if not self._container.streams.audio:
            raise AudioError(f"{name} has no sound track; give a file with sound")
        track = self._container.streams.audio[0]
        try:
            rate, channels = int(track.rate or 0), int(track.channels or 0)
        except (AttributeError, TypeError, ValueError) as error:
            raise AudioError(f"{foreign}, mp4, m4a, webm or aac") from error
        _check_rate(name, rate, channels)
        length = self._container.duration  # microseconds
        self.info = AudioInfo((length or 0) / 1e6, rate, channels, self._container.format.name.split(",")[0])

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """(C, S) float32 in blocks of about ``size``."""
        waiting: list[np.ndarray] = []
        for piece in self._pieces():
            waiting.append(piece)
            if sum(item.shape[1] for item in waiting) >= size:
                yield np.concatenate(waiting, axis=1)
                waiting = []
        if waiting:
            yield np.concatenate(waiting, axis=1)

    def _pieces(self) -> Iterator[np.ndarray]:
        plain = self._av.AudioResampler(format="fltp", rate=self.info.sample_rate)
        seconds = 0.0
        try:
            for frame in self._container.decode(audio=0):
                seconds += frame.samples / self.info.sample_rate
                for made in plain.resample(frame):
                    yield made.to_ndarray()
            for made in plain.resample(None):
                yield made.to_ndarray()
        except (self._av.FFmpegError, ValueError) as error:
            raise AudioError(f"{self.name} is damaged {seconds:.1f} s in; copy it again") from error

    def close(self) -> None:
        self._container.close()
        self._file.close()


# ---------------------------------------------------------------------------------------------------- writing


def check_format(path: str | Path) -> str:
    """The suffix of a sound file that can be written (``-`` is wav); AudioError names those that can."""
    suffix = ".wav" if str(path) == "-" else Path(path).suffix.lower()
    if suffix not in _FORMATS:
        known = ", ".join(name[1:] for name in _FORMATS)
        raise AudioError(f"{path} does not end in a format that can be written{nearest(suffix, _FORMATS)}; use {known}")
    return suffix


def check_target(path: str | Path) -> None:
    """AudioError where a file of this name cannot be made: asked before long work, so that it is not lost."""
    target = Path(path)
    if str(path) == "-":
        return
    if target.is_dir():
        raise AudioError(f"{target} is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise AudioError(f"there is no folder {target.parent}; make it first")
    if not os.access(target.parent, os.W_OK):
        raise AudioError(f"{target} cannot be written (no permission); check the folder, or choose another")


def save(path: str | Path, wave: Tensor | np.ndarray, sample_rate: int) -> Path:
    """Write a wave (S,) as wav, flac, ogg, opus or mp3 by the file's ending; ``-`` is wav on standard output.

    The file appears whole or not at all. Rates that a format cannot hold are converted to the nearest one above.
    """
    save_stream(path, [wave], sample_rate)
    return Path(path)


def save_stream(path: str | Path, chunks: Iterable[np.ndarray | Tensor], sample_rate: int) -> int:
    """Write chunks (S,) as they come, as :func:`save` does, in constant memory; gives the number of samples taken."""
    suffix = check_format(path)
    if str(path) == "-":
        return write_stream(chunks, sample_rate, sys.stdout.buffer)
    allowed = _FORMAT_RATES.get(suffix, (sample_rate,))
    rate = min((allowed_rate for allowed_rate in allowed if allowed_rate >= sample_rate), default=max(allowed))
    stream = None if rate == sample_rate else soxr.ResampleStream(sample_rate, rate, 1, dtype="float32", quality="HQ")
    form, subtype = _FORMATS[suffix]
    total = 0
    with (
        NewFile(Path(path)) as scratch,
        soundfile.SoundFile(scratch, "w", rate, 1, format=form, subtype=subtype) as file,
    ):
        for chunk in chunks:
            samples = _samples(chunk)
            total += len(samples)
            file.write(samples if stream is None else stream.resample_chunk(samples))
        if stream is not None:
            file.write(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return total


def _samples(chunk: np.ndarray | Tensor) -> np.ndarray:
    """A chunk as clipped float32 (S,); AudioError where it holds no numbers."""
    samples = np.ascontiguousarray(np.asarray(chunk, dtype=np.float32).reshape(-1))
    if not np.isfinite(samples).all():
        raise AudioError("the wave holds samples that are not numbers (NaN or infinite), so it is not written")
    return samples.clip(-1, 1)


class NewFile:
    """A scratch path beside ``target`` that takes its place when the block ends well, and goes away when not."""

    def __init__(self, target: Path):
        self.target = target
        self.scratch = target.with_name(f".{target.name}.{os.getpid()}.new")

    def __enter__(self) -> Path:
        check_target(self.target)
        return self.scratch

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            os.replace(self.scratch, self.target)
            return
        self.scratch.unlink(missing_ok=True)
        if isinstance(error, OSError | soundfile.LibsndfileError):
            raise AudioError(f"{self.target} cannot be written ({error}); check the folder and the disk") from error


def write_stream(chunks: Iterable[np.ndarray | Tensor], sample_rate: int, out: BinaryIO) -> int:
    """Chunks as they come, as 16-bit wav of unknown length, so that a reader may play before the end -> samples."""
    size, total = 0xFFFFFFFF, 0
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    out.write(struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + struct.pack("<4sI", b"data", size))
    for chunk in chunks:
        samples = _samples(chunk)
        total += len(samples)
        out.write((samples * 32_767).round().astype("<i2").tobytes())
        out.flush()
    return total


# ---------------------------------------------------------------------------------------------------- devices


def _sounddevice() -> Any:
    try:
        return require("sounddevice", "mic", "the microphone and the loudspeaker")
    except OSError as error:  # the package is there, the system library is not
        raise MissingExtraError("sounddevice finds no PortAudio library: run  apt install libportaudio2") from error


def play(chunks: Iterable[np.ndarray | Tensor], sample_rate: int) -> None:
    """Play chunks (S,) as they come; returns when the last one has been heard."""
    device = _sounddevice()
    try:
        with device.OutputStream(samplerate=sample_rate, channels=1, dtype="float32") as stream:
            for chunk in chunks:
                stream.write(np.ascontiguousarray(np.asarray(chunk, dtype=np.float32)[:, None]))
    except device.PortAudioError as error:
        raise AudioError(f"the loudspeaker cannot be used ({error}); write a file with -o instead") from error


def microphone(sample_rate: int = 16_000, seconds: float = 0.1) -> Iterator[Tensor]:
    """Blocks (S,) of ``seconds`` from the microphone, without end: stop by closing the iterator."""
    device = _sounddevice()
    try:
        with device.InputStream(samplerate=sample_rate, channels=1, dtype="float32") as stream:
            while True:
                block, _ = stream.read(round(seconds * sample_rate))
                yield torch.from_numpy(np.ascontiguousarray(block[:, 0]))
    except device.PortAudioError as error:
        raise AudioError(f"the microphone cannot be used ({error}); give a sound file instead") from error
