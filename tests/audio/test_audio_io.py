"""Sound files of every kind in and out; any length in constant memory."""

from __future__ import annotations

import io
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from tests.tiny import tone
from vivavoce.audio import io as sound
from vivavoce.errors import AudioError, MissingExtraError


def joined(path: str | Path, rate: int, seconds: float = 10.0) -> torch.Tensor:
    return torch.cat(list(sound.read_blocks(path, rate, seconds)))


def test_blocks_join_to_the_whole_file(tmp_path: Path) -> None:
    wave = tone(3.0)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    whole = joined(tmp_path / "a.wav", 16_000)
    assert torch.equal(whole, torch.from_numpy(wave[:, 0]))
    assert torch.equal(joined(tmp_path / "a.wav", 16_000, 0.1), whole)
    assert [len(b) for b in sound.read_blocks(tmp_path / "a.wav", 16_000, 1.0)] == [16_000] * 3
    resampled = joined(tmp_path / "a.wav", 8_000, 0.3)
    assert abs(len(resampled) - 24_000) <= 2
    assert torch.allclose(resampled, joined(tmp_path / "a.wav", 8_000)[: len(resampled)], atol=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16_000, subtype=subtype)
    assert (joined(tmp_path / "a.wav", 16_000) - torch.from_numpy(tone(0.5)[:, 0])).abs().max() < 0.03


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
def test_what_is_saved_can_be_read(tmp_path: Path, suffix: str) -> None:
    wave = tone(1.0, 22_050)[:, 0]
    sound.save(tmp_path / f"a.{suffix}", wave, 22_050)
    back, rate = sound.load(tmp_path / f"a.{suffix}", 22_050)
    assert rate == 22_050 and abs(len(back) - len(wave)) < 3000
    assert sound.info(tmp_path / f"a.{suffix}").channels == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("codec", "name"), [("aac", "a.m4a"), ("aac", "a.mp4"), ("aac", "a.aac"), ("libopus", "a.webm")]
)
def test_containers_go_through_pyav(tmp_path: Path, codec: str, name: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / name), "w", format="adts" if name.endswith("aac") else None) as container:
        track = container.add_stream(codec, rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(tone(1.0, 48_000, 2).T.copy(), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    wave = joined(tmp_path / name, 16_000)
    assert abs(len(wave) - 16_000) < 1500 and 0.1 < float(wave.abs().max()) < 0.5
    assert sound.info(tmp_path / name).sample_rate == 48_000


def test_channels_are_averaged_however_many(tmp_path: Path) -> None:
    wave = tone(0.2, channels=48)
    soundfile.write(tmp_path / "many.wav", wave, 16_000, subtype="FLOAT")
    assert torch.allclose(joined(tmp_path / "many.wav", 16_000), torch.from_numpy(wave.mean(axis=1)), atol=1e-6)


def test_twenty_milliseconds_are_enough(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", tone(0.02, 8_000), 8_000)
    assert abs(len(joined(tmp_path / "short.wav", 16_000)) - 320) <= 1


def test_two_hours_pass_in_constant_memory(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 8_000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8_000, np.float32))
    tracemalloc.start()
    total = sum(len(block) for block in sound.read_blocks(tmp_path / "long.wav", 16_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(total - 7200 * 16_000) <= 2 and peak < 20e6


def test_a_stream_of_unknown_length_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    assert sound.write_stream([tone(0.5)[:, 0], tone(0.5)[:, 0]], 16_000, out) == 16_000
    (tmp_path / "a.wav").write_bytes(out.getvalue())
    assert len(joined(tmp_path / "a.wav", 16_000)) == 16_000
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(out.getvalue())))
    assert len(joined("-", 16_000)) == 16_000


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def chunks():
        yield tone(0.1)[:, 0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sound.save_stream(tmp_path / "a.wav", chunks(), 16_000)
    with pytest.raises(AudioError, match="not numbers"):
        sound.save(tmp_path / "a.wav", np.array([0.0, np.nan]), 16_000)
    with pytest.raises(AudioError, match="no folder"):
        sound.save(tmp_path / "none" / "a.wav", tone(0.1), 16_000)
    with pytest.raises(AudioError, match="use wav, flac"):
        sound.save(tmp_path / "a.txt", tone(0.1), 16_000)
    assert list(tmp_path.iterdir()) == []


def test_loud_waves_are_clipped_not_wrapped(tmp_path: Path) -> None:
    sound.save(tmp_path / "a.wav", torch.tensor([2.0, -2.0, 0.5]), 16_000)
    assert torch.allclose(joined(tmp_path / "a.wav", 16_000), torch.tensor([1.0, -1.0, 0.5]), atol=1e-3)


def test_devices_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"vivavoce\[mic\]"):
        next(sound.microphone())

    def no_library(*_: object) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(sound, "require", no_library)
    with pytest.raises(MissingExtraError, match="libportaudio2"):
        sound.play([np.zeros(10)], 16_000)


def test_sound_is_played_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[np.ndarray] = []

    class Stream:
        def __init__(self, **_: object) -> None: ...
        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None: ...
        def write(self, block: np.ndarray) -> None:
            heard.append(block)

        def read(self, size: int) -> tuple[np.ndarray, bool]:
            return np.ones((size, 1), np.float32), False

    device = SimpleNamespace(OutputStream=Stream, InputStream=Stream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    sound.play(iter([np.zeros(3), torch.ones(2)]), 8_000)
    assert [block.shape for block in heard] == [(3, 1), (2, 1)]
    assert next(sound.microphone(16_000, 0.1)).shape == (1600,)
