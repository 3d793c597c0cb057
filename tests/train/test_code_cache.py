"""Codes of sound files: the tokenizer's own, made once for each content, whatever happens in between."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.own_records import write_sounds
from tests.spoken import WORDS, spelled
from vivavoce.audio import io as audio
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.errors import AudioError, ConfigError
from vivavoce.nn.vector_quantizer import k_means
from vivavoce.train import code_cache
from vivavoce.train.code_cache import CodeCache


@cache
def tokenizer(seed: int = 0) -> GLM4Tokenizer:
    """Random, with a codebook of which spoken words use many rows."""
    torch.manual_seed(seed)
    made, draws = GLM4Tokenizer(GLM4TokenizerConfig.tiny()).eval(), np.random.default_rng(seed)
    waves = [torch.from_numpy(spelled(word, draws)[0]).float() for word in WORDS]
    with torch.no_grad():
        states = torch.cat([made.features(made.mel(wave[None]))[0] for wave in waves])
        made.codebook.weight.copy_(k_means(states, made.config.codes))
    return made


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    write_sounds(tmp_path)
    return sorted((tmp_path / "sounds").iterdir())


def test_codes_are_the_tokenizers_own_and_made_once(sounds: list[Path], tmp_path: Path) -> None:
    one = tokenizer()
    first, told = CodeCache(tmp_path / "codes", one), list[tuple[str, float, float]]()
    first.fill([*sounds, sounds[0]], lambda *what: told.append(what))
    assert first.made == len(sounds) == 10 and told[-1] == ("codes", 10, 10)
    for path in sounds:
        wave, _ = audio.load(path, 16_000)
        with torch.inference_mode():
            assert first.of(path) == one(wave[None]).values[0, 0].tolist()
    assert len({code for path in sounds for code in first.of(path)}) > 1
    again = CodeCache(tmp_path / "codes", tokenizer())
    assert again.of(sounds[3]) == first.of(sounds[3]) and again.made == 0


def test_content_counts_not_the_name(sounds: list[Path], tmp_path: Path) -> None:
    one, other = sounds[0], sounds[1]
    first = CodeCache(tmp_path / "codes", tokenizer())
    before = first.of(one)
    shutil.copyfile(one, tmp_path / "moved.wav")
    again = CodeCache(tmp_path / "codes", tokenizer())
    assert again.of(tmp_path / "moved.wav") == before and again.made == 0
    shutil.copyfile(other, one)
    changed = CodeCache(tmp_path / "codes", tokenizer())
    assert len(changed.of(one)) == len(changed.of(other)) != len(before) and changed.made == 1


def test_another_tokenizer_makes_its_own(sounds: list[Path], tmp_path: Path) -> None:
    caches = [CodeCache(tmp_path / "codes", tokenizer(seed)) for seed in (0, 1)]
    one, other = ([cache.of(path) for path in sounds] for cache in caches)
    assert one != other and caches[1].made == 10 and len(list((tmp_path / "codes").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no codes"])
def test_damaged_codes_are_made_anew(sounds: list[Path], tmp_path: Path, damage: bytes) -> None:
    cache = CodeCache(tmp_path / "codes", tokenizer())
    wanted = cache.of(sounds[0])
    (kept,) = cache.folder.iterdir()
    kept.write_bytes(damage)
    again = CodeCache(tmp_path / "codes", tokenizer())
    assert again.of(sounds[0]) == wanted and again.made == 1 and np.load(kept).tolist() == wanted


def test_codes_of_another_kind_are_made_anew(sounds: list[Path], tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "codes", tokenizer())
    wanted = cache.of(sounds[0])
    (kept,) = cache.folder.iterdir()
    for strange in (np.array([[1]], "<i4"), np.array([32], "<i4"), np.array([-1], "<i4"), np.array(["x"], object)):
        np.save(kept, strange, allow_pickle=strange.dtype == object)
        assert CodeCache(tmp_path / "codes", tokenizer()).of(sounds[0]) == wanted


def test_what_was_interrupted_goes_on(sounds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, moved = code_cache.os.replace, list[Path]()

    def dying(part: Path, place: Path) -> None:
        if len(moved) == 4:
            raise KeyboardInterrupt
        replace(part, place)
        moved.append(place)

    with monkeypatch.context() as patch:
        patch.setattr(code_cache.os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            CodeCache(tmp_path / "codes", tokenizer()).fill(sounds)
    again = CodeCache(tmp_path / "codes", tokenizer())
    again.fill(sounds)
    assert again.made == 6


def test_what_cannot_be_encoded_is_told(sounds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CodeCache(tmp_path / "codes", tokenizer())
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match="is no sound file"):
        cache.of(tmp_path / "text.wav")
    with pytest.raises(ConfigError, match="cannot be read"):
        cache.of(tmp_path / "nowhere.wav")
    monkeypatch.setattr(code_cache, "LONGEST", 0.1)
    with pytest.raises(ConfigError, match="longer than 0 minutes"):
        cache.of(sounds[0])
    monkeypatch.setattr(code_cache, "LONGEST", 600.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="codes cannot be kept in"):
        CodeCache(tmp_path / "file", tokenizer()).of(sounds[0])
