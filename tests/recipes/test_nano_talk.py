"""Binding trained parts into one folder: what belongs together is bound and talks, what does not is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vivavoce
from tests.spoken import write_corpus
from vivavoce import vita_audio_verbs
from vivavoce.checkpoints.native import save_native
from vivavoce.codecs.glm4_decoder import GLM4Decoder
from vivavoce.errors import ConfigError
from vivavoce.recipes import glm4_decoder, vita_audio
from vivavoce.recipes.glm4_tokenizer import GLM4Tokenizer, tiny_config
from vivavoce.recipes.nano_talk import bind, shrink_tokenizer
from vivavoce.train.loop import train
from vivavoce.vocoders.hift import HiFT, HiFTConfig


def test_the_chain_ends_in_a_folder_that_talks(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    torch.manual_seed(0)
    save_native(tmp_path / "floats", "glm4_tokenizer", tiny_config(), GLM4Tokenizer(tiny_config()).state_dict())
    shrink_tokenizer(tmp_path / "floats", tmp_path / "tokenizer")
    save_native(tmp_path / "vocoder", "hift", HiFTConfig.nano(), HiFT(HiFTConfig.nano()).state_dict())
    flow = glm4_decoder.open(corpus, glm4_decoder.Options(size="tiny", tokenizer=str(tmp_path / "tokenizer"), steps=1))
    train(flow, tmp_path / "flow")
    flow.finish(tmp_path / "decoder")
    options = vita_audio.Options(size="tiny", tokenizer=str(tmp_path / "tokenizer"), steps=1)
    train(vita_audio.open(corpus, options), tmp_path / "run")
    for name, kind in (("tokenizer", GLM4Tokenizer), ("decoder", GLM4Decoder), ("vocoder", HiFT)):
        assert isinstance(vivavoce.load(tmp_path / name), kind)
    paths = {name: tmp_path / name for name in ("tokenizer", "decoder", "vocoder")}
    bind(tmp_path / "run", out=tmp_path / "talk", **paths)
    parts = vita_audio_verbs.open_speech_model(str(tmp_path / "talk"))
    made = vita_audio_verbs.converse(parts, [0.1 * torch.randn(8_000)], mode="vanilla", real_time=False)
    assert made.models and made.backbone_passes_before_sound != 0

    other = GLM4Tokenizer(replace(tiny_config()))
    save_native(tmp_path / "other", "glm4_tokenizer", tiny_config(), other.state_dict())
    with pytest.raises(ConfigError, match="another tokenizer"):
        bind(tmp_path / "run", tmp_path / "other", tmp_path / "decoder", tmp_path / "vocoder", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
