"""Codes of a set, made once: they are the tokenizer's own, and another tokenizer makes them anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.spoken import WORDS, spelled, write_corpus
from vivavoce.checkpoints.native import save_native
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.errors import ConfigError
from vivavoce.nn.vector_quantizer import k_means
from vivavoce.train.codes import CodedUtterances, fingerprint, read_tokenizer

CONFIG = replace(GLM4TokenizerConfig.tiny(), context=1500)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken") / "corpus") / "teacher"


def tokenizer(seed: int) -> GLM4Tokenizer:
    """Random, with a codebook of which spoken words use many rows."""
    torch.manual_seed(seed)
    made, draws = GLM4Tokenizer(CONFIG).eval(), np.random.default_rng(seed)
    waves = [torch.from_numpy(spelled(word, draws)[0]).float() for word in WORDS]
    with torch.no_grad():
        states = torch.cat([made.features(made.mel(wave[None]))[0] for wave in waves])
        made.codebook.weight.copy_(k_means(states, CONFIG.codes))
    return made


@torch.inference_mode()
def test_codes_are_the_tokenizers_own(teacher: Path) -> None:
    one, told = tokenizer(0), list[tuple[str, float, float]]()
    coded = CodedUtterances(teacher, one, lambda *what: told.append(what))
    assert told[-1] == ("codes", 20, 20)
    for number, row in enumerate(coded.corpus.rows):
        own = one(coded.corpus.wave(number)[None]).values[0, 0].tolist()
        assert coded.of(number).tolist() == own and len(own) == -(-row["samples"] // 1280)
    assert len(set(coded.codes.tolist())) > 3, "codes that are all the same show nothing"


def test_they_are_made_once_a_tokenizer(teacher: Path) -> None:
    first, told = CodedUtterances(teacher, tokenizer(0)).codes, list[str]()
    again = CodedUtterances(teacher, tokenizer(0), lambda what, done, total: told.append(what))
    assert not told and (again.codes == first).all()
    other = CodedUtterances(teacher, tokenizer(1), lambda what, done, total: told.append(what))
    assert told and (other.codes != first).any()
    mark = json.loads((teacher / "codes-glm4.json").read_text())
    assert mark == {"tokenizer": fingerprint(tokenizer(1)), "utterances": 20, "views": 1}
    (teacher / "codes-glm4.json").unlink()  # a run that was killed before it could say whose codes they are
    assert (CodedUtterances(teacher, tokenizer(0)).codes == first).all()


@torch.inference_mode()
def test_views_are_the_same_sound_varied(teacher: Path) -> None:
    one = tokenizer(0)
    coded = CodedUtterances(teacher, one, views=3)
    plain = CodedUtterances(teacher, one)  # more views than asked for serve too
    assert coded.views == 3 and plain.views == 1
    for number, row in enumerate(coded.corpus.rows):
        assert (coded.of(number) == plain.of(number)).all()
        assert coded.of(number).tolist() == one(coded.corpus.wave(number)[None]).values[0, 0].tolist()
        for view in (1, 2):
            assert abs(len(coded.of(number, view)) - row["samples"] / 1280) < 0.12 * row["samples"] / 1280 + 1
    assert len(coded.codes) == coded.ends[-1, -1]
    assert (coded.of(3, 1)[:4] != coded.of(3)[:4]).any() or (coded.of(3, 2)[:4] != coded.of(3)[:4]).any()


def test_a_fingerprint_tells_weights_and_sizes_apart() -> None:
    one = tokenizer(0)
    same = fingerprint(one)
    assert fingerprint(tokenizer(0)) == same
    with torch.no_grad():
        one.layers[0].get_parameter(next(name for name, _ in one.layers[0].named_parameters())).view(-1)[0] += 1e-6
    assert fingerprint(one) != same
    other = GLM4Tokenizer(replace(CONFIG, block=8))
    other.load_state_dict(tokenizer(0).state_dict())
    assert fingerprint(other) != same


def test_a_tokenizer_is_read_from_its_folder(tmp_path: Path) -> None:
    one = tokenizer(0)
    save_native(tmp_path / "model", "glm4_tokenizer", CONFIG, one.state_dict())
    assert fingerprint(read_tokenizer(tmp_path / "model")) == fingerprint(one)
    with pytest.raises(ConfigError, match="there is no tokenizer in"):
        read_tokenizer(tmp_path)
    save_native(tmp_path / "other", "hift", CONFIG, {})
    with pytest.raises(ConfigError, match="holds a model of hift"):
        read_tokenizer(tmp_path / "other")
