"""The flow decoder's recipe: pieces fit together, it learns, repeats itself, and its model can be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.spoken import write_corpus, write_tokenizer
from vivavoce.checkpoints.native import build, open_native
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig, time_noise
from vivavoce.config import from_dict
from vivavoce.errors import ConfigError
from vivavoce.recipes.glm4_decoder import DecoderRecipe, Options, open, padded
from vivavoce.train.loop import CHECKPOINT, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken") / "corpus")


@pytest.fixture(scope="module")
def tiny(corpus: Path) -> Options:
    folder = write_tokenizer(corpus, corpus.parent / "tokenizer")
    return Options(size="tiny", tokenizer=str(folder), budget=60, rate=1e-2)


@torch.no_grad()
def distance(recipe: DecoderRecipe) -> float:
    """The flow's error over everything held out, with the same draws each time."""
    tokens, mel, lengths = padded([recipe.piece(number, 0, 44) for number in recipe.dev_items])
    torch.manual_seed(0)
    time = torch.rand(len(tokens))
    return float(recipe.net.loss_terms(tokens, mel, noise=torch.randn_like(mel), time=time, lengths=lengths)["flow"])


def test_pieces_are_the_codes_and_the_mel_beside_them(corpus: Path, tiny: Options) -> None:
    recipe = open(corpus, tiny)
    number = recipe.train_items[0]
    codes, mel = recipe.piece(number, 0, 44)
    assert codes.tolist() == recipe.data.of(number).tolist() and mel.shape == (80, 5 * len(codes))
    part, beside = recipe.piece(number, 2, 3)
    assert torch.equal(part, codes[2:5]) and torch.equal(beside, mel[:, 10:25])
    tokens, mels, lengths = padded([(codes, mel), (part, beside)])
    assert tokens.shape == (2, len(codes)) and lengths.tolist() == [len(codes), 3]
    assert torch.equal(mels[1, :, :15], beside) and not mels[1, :, 15:].any()
    assert abs(float(mel.mean())) < 1
    assert len(set(recipe.data.codes.tolist())) > 8, "codes that are all the same say nothing"


def test_it_learns_and_its_decoder_can_be_used(corpus: Path, tiny: Options, tmp_path: Path) -> None:
    recipe = open(corpus, replace(tiny, steps=25))
    before = distance(recipe)
    figures = train(recipe, tmp_path / "run")
    assert figures["mel distance"] > 0 and distance(recipe) < 0.7 * before
    recipe.finish(tmp_path / "model")
    about = open_native(tmp_path / "model")
    assert about.system == "glm4_decoder"
    assert about.settings == {"mean": -5.0, "scale": 2.5, "tokenizer": recipe.codes_of}
    decoder = build(GLM4Decoder, from_dict(GLM4DecoderConfig, about.config), about.tensors())
    codes, mel = recipe.piece(recipe.dev_items[0], 0, 44)
    with torch.inference_mode():
        made = decoder(codes[None], time_noise(0, mel.shape[1], 80)[None])[0]
        own = recipe.net.eval()(codes[None], time_noise(0, mel.shape[1], 80)[None])[0]
    assert made.shape == mel.shape and torch.allclose(made, own, atol=1e-5)


def test_two_runs_are_equal(corpus: Path, tiny: Options, tmp_path: Path) -> None:
    for name in ("one", "two"):
        recipe = open(corpus, replace(tiny, steps=3))
        recipe.sample = lambda folder, step: None
        train(recipe, tmp_path / name)
    one, two = (load_file(tmp_path / name / CHECKPOINT) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_missing_is_said(corpus: Path, tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="viva train glm4_tokenizer"):
        open(corpus, replace(tiny, tokenizer=str(tmp_path)))
    with pytest.raises(ConfigError, match="holds no set of utterances"):
        open(tmp_path, tiny)


def test_a_decoder_goes_on_from_another(corpus: Path, tiny: Options, tmp_path: Path) -> None:
    first = open(corpus, replace(tiny, seed=1))
    first.finish(tmp_path / "model")
    second = open(corpus, replace(tiny, before=str(tmp_path / "model"), lookahead=3))
    fresh = open(corpus, replace(tiny, lookahead=3))
    own, other = second.net.state_dict(), fresh.net.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in first.net.state_dict().items())
    assert any(not torch.equal(own[name], other[name]) for name in own) and second.config.lookahead == 3
