"""What every catalogue row keeps: its room's contract, sizes, batches, gradients, determinism, its form on disk."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.contracts.cases import noise, tiny
from vivavoce import api
from vivavoce.asr import Recognizer, Transcript
from vivavoce.asr.sensevoice import SenseVoice
from vivavoce.asr.whisper import Whisper
from vivavoce.catalogue import CATALOGUE, System, reference
from vivavoce.checkpoints.native import build, open_native, save_native
from vivavoce.codecs.glm4_decoder import GLM4Decoder
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer
from vivavoce.config import from_dict, to_dict
from vivavoce.detect import Detector
from vivavoce.detect.silero import Silero
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_plus import Sound, VITAAudioPlus
from vivavoce.errors import ConfigError
from vivavoce.lm import TokenModel
from vivavoce.lm.llama import Llama
from vivavoce.nn.hifigan import HiFiGAN
from vivavoce.tts import Speech, Voice
from vivavoce.tts.vits import VITS
from vivavoce.vocoders import Vocoder
from vivavoce.vocoders.hift import HiFT

every_row = pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.stem)

# Parameters of published sizes. Whisper: positions counted, tied embeddings once, and without the key biases that the
# paper's model does not have (ours keeps zeros there, so that query, key and value are one matrix).
SIZES = {
    ("sensevoice", "small"): 233_999_167,
    ("vita_audio_plus", "vanilla"): 7_979_042_111,
    ("vita_audio_plus", "boost"): 10_566_592_831,
    ("whisper", "tiny"): 37_760_640,
    ("whisper", "tiny.en"): 37_760_256,
    ("whisper", "base"): 72_593_920,
    ("whisper", "base.en"): 72_593_408,
    ("whisper", "small"): 241_734_912,
    ("whisper", "small.en"): 241_734_144,
    ("whisper", "medium"): 763_857_920,
    ("whisper", "medium.en"): 763_856_896,
    ("whisper", "large"): 1_543_304_960,
    ("whisper", "large-v2"): 1_543_304_960,
    ("whisper", "large-v3"): 1_543_490_560,
    ("whisper", "large-v3-turbo"): 808_878_080,
    ("silero", "16k"): 309_633,
    ("silero", "8k"): 235_649,
    ("vits", "ljspeech"): 36_287_856,
    ("vits", "vctk"): 39_654_704,
    ("vits", "piper-medium"): 15_650_459,
    ("hifigan", "v1"): 13_926_017,
    ("hifigan", "v2"): 925_985,
    ("hifigan", "v3"): 1_462_273,
    ("glm4_tokenizer", "published"): 343_139_840,
    ("glm4_tokenizer", "nano"): 14_812_160,
    ("hift", "published"): 20_447_517,
    ("hift", "nano"): 606_173,
    ("vita_audio", "boost"): 10_317_912_576,
    ("vita_audio", "stage-2"): 7_989_116_928,
    ("vita_audio", "stage-1"): 7_730_361_856,
    ("glm4_decoder", "published"): 111_166_208,
    ("glm4_decoder", "nano"): 1_907_856,
    ("llama", "smollm2-135m"): 134_515_008,
    ("llama", "qwen2.5-0.5b"): 494_032_768,
    ("llama", "qwen2.5-1.5b"): 1_543_714_304,
    ("llama", "qwen2.5-7b"): 7_615_616_512,
}


@pytest.mark.parametrize(("stem", "size"), [(row.stem, size) for row in CATALOGUE for size in row.sizes])
def test_every_named_size_can_be_made(stem: str, size: str) -> None:
    with torch.device("meta"):
        model = api.create(stem, size)
    count = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(model, Whisper):
        config = model.config
        count -= config.audio_layers * config.audio_dim + 2 * config.text_layers * config.text_dim
    if size == "tiny-test":
        assert count < 300_000
    else:
        assert count == SIZES[stem, size]


# ---------------------------------------------------------------------------------------------------- rooms


def _keeps(protocol: type, made: Any) -> None:
    """Every method of a room's protocol is there and takes what the protocol's takes."""
    for name, wanted in inspect.getmembers(protocol, inspect.isfunction):
        if name.startswith("_"):
            continue
        given = inspect.signature(getattr(made, name)).parameters
        asked = list(inspect.signature(wanted).parameters.values())[1:]
        by_place = [parameter for parameter in asked if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        by_name = {parameter.name for parameter in asked if parameter.kind is parameter.KEYWORD_ONLY}
        assert by_name <= set(given), f"{name} lacks {by_name - set(given)}"
        places = [p.name for p in given.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert places[: len(by_place)] == [p.name for p in by_place], name


def test_a_recogniser_keeps_its_room(desk: Path) -> None:
    heard = api.load("whisper-base")
    _keeps(Recognizer, heard)
    made = heard.transcribe(noise(16_000), 16_000, language="en")
    assert isinstance(made, Transcript) and made.language == "en" and made.duration == 1.0
    assert [partial.final for partial in heard.stream([noise(8000)] * 2, 16_000, language="en", every=0.4)][-1]


def test_a_voice_keeps_its_room(desk: Path) -> None:
    voice = api.load("vits-joe", parts={"phonemes": "lexicon"})
    _keeps(Voice, voice)
    speech = voice.synthesize("Good day.", generator=1)
    assert isinstance(speech, Speech) and speech.sample_rate == voice.sample_rate == 8000
    assert speech.wave.ndim == 1 and speech.wave.dtype == "float32" and abs(speech.wave).max() <= 1
    pieces = list(voice.stream(iter(["Good ", "day."]), generator=1))
    assert all(piece.ndim == 1 for piece in pieces) and sum(map(len, pieces)) > 0


@torch.inference_mode()
def test_a_detector_a_vocoder_and_a_language_model_keep_their_rooms(desk: Path) -> None:
    detector = api.load("silero-vad")
    _keeps(Detector, detector)
    odds, state = detector.step(noise(2, 3 * 512), detector.init_state(2))
    assert odds.shape == (2, 3) and odds.min() >= 0 and odds.max() <= 1 and state.context.shape == (2, 64)
    vocoder = tiny("hifigan")
    _keeps(Vocoder, vocoder)
    wave = vocoder(noise(2, 6, 5))
    assert wave.shape == (2, 5 * 16) and wave.abs().max() <= 1
    model, tokenizer = api.load("smollm2-135m-instruct")
    _keeps(TokenModel, model)
    ids = torch.tensor([tokenizer.encode("good day")])
    logits, state = model.step(ids, model.init_state(1, 32))
    assert logits.shape == (1, model.config.vocab_size) and state[0].position.tolist() == [ids.shape[1]]
    assert model.logits(ids).shape == (1, ids.shape[1], model.config.vocab_size)


# ---------------------------------------------------------------------------------------------------- batches


@torch.inference_mode()
def test_padded_batches_equal_rows_alone() -> None:
    generator = tiny("hifigan")
    mel, lengths = noise(2, 6, 9), torch.tensor([9, 5])
    both = generator(mel, lengths)
    assert torch.allclose(both[1, : 5 * 16], generator(mel[1:, :, :5])[0], atol=1e-6)
    assert not torch.allclose(both[1, : 5 * 16], generator(mel)[1, : 5 * 16], atol=1e-6)  # the padding would be heard

    voice = tiny("vits")
    tokens, lengths = torch.arange(18).view(2, 9) + 3, torch.tensor([9, 5])
    both, durations = voice.synthesize(tokens, lengths, noise=_same, duration_noise=_same)
    alone, single = voice.synthesize(tokens[1:, :5], lengths[1:], noise=_same, duration_noise=_same)
    assert torch.equal(durations[1, :5], single[0]) and not durations[1, 5:].any()
    assert torch.allclose(both[1, : alone.shape[1]], alone[0], atol=1e-5)

    whisper = tiny("whisper")
    assert isinstance(whisper, Whisper)
    mel, tokens = noise(2, 20, 200), torch.arange(14).view(2, 7)
    for row in (0, 1):
        alone = whisper(mel[row : row + 1], tokens[row : row + 1])
        assert torch.allclose(whisper(mel, tokens)[row], alone[0], atol=1e-4)
    # the term of a padded batch is the mean over the real tokens of its rows
    lengths = torch.tensor([7, 4])
    rows = [whisper.loss_terms(mel[r : r + 1], tokens[r : r + 1, :n], torch.tensor([n])) for r, n in ((0, 7), (1, 4))]
    assert torch.allclose(whisper.loss_terms(mel, tokens, lengths), (6 * rows[0] + 3 * rows[1]) / 9, rtol=1e-5)

    model = tiny("llama")
    assert isinstance(model, Llama)
    tokens = torch.arange(14).view(2, 7)
    assert torch.allclose(model.logits(tokens)[1], model.logits(tokens[1:])[0], atol=1e-5)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    rows = [model.loss_terms(tokens[:1], mask[:1]), model.loss_terms(tokens[1:, :4], mask[1:, :4])]
    assert torch.allclose(model.loss_terms(tokens, mask), (6 * rows[0] + 3 * rows[1]) / 9, rtol=1e-5)

    detector = tiny("silero")
    wave = noise(2, 900)
    assert torch.allclose(detector(wave)[1], detector(wave[1:])[0], atol=1e-6)


def _same(shape: tuple[int, ...]) -> Tensor:
    """The same numbers at the same places whatever the shape behind them."""
    return noise(1, shape[1], 4000)[..., : shape[2]].expand(shape)


# ---------------------------------------------------------------------------------------------------- training


def _loss(model: nn.Module) -> Tensor:
    """One number that depends on all of a model."""
    if isinstance(model, Whisper):
        return model.loss_terms(noise(2, 20, 200), torch.arange(20).view(2, 10), torch.tensor([10, 6]))
    if isinstance(model, Llama):
        return model.loss_terms(torch.arange(20).view(2, 10), torch.ones(2, 10, dtype=torch.bool))
    if isinstance(model, Silero):
        return F.binary_cross_entropy(model(noise(2, 256 * 6)), torch.tensor([[0.0, 1.0] * 3] * 2))
    if isinstance(model, HiFiGAN):
        return model(noise(2, 6, 8)).square().mean()
    if isinstance(model, VITAAudio):
        tokens = torch.arange(40).view(2, 20)
        terms = model.loss_terms(tokens, tokens)
        return terms["main"] + terms["modules"].sum()
    if isinstance(model, SenseVoice):
        tokens = torch.arange(14).view(2, 7) + 1
        terms = model.loss_terms(noise(2, 4000), torch.tensor([4000, 3500]), tokens, torch.tensor([7, 6]))
        return terms["labels"] + terms["text"]
    if isinstance(model, VITAAudioPlus):
        clips = torch.cat(model.hear(noise(2, 2000)))
        tokens = torch.arange(60).view(2, 30)
        states = model(tokens, Sound(torch.arange(30).expand(2, -1) < len(clips) // 2, clips))
        unused = model.hearing.head(noise(1, 24)).square().mean()
        return (
            unused
            + sum(model.logits(x[:, 4:]).logsumexp(-1).mean() for x in states)
            + model.logits(states[-1]).square().mean()
        )
    if isinstance(model, GLM4Tokenizer):
        pooled = model.features(noise(2, 20, 96))
        return (pooled[:, :, None] - model.codebook.weight).square().mean() + pooled.mean()
    if isinstance(model, HiFT):
        mel = noise(2, 6, 8)
        return model(mel, noise=noise(2, 9, 128), f0=torch.full((2, 8), 60.0)).square().mean() + model.f0(mel).mean()
    if isinstance(model, GLM4Decoder):
        mel, start = noise(2, 6, 30), noise(2, 6, 30, seed=1)
        terms = model.loss_terms(torch.arange(20).view(2, 10), mel, noise=start, time=torch.tensor([0.2, 0.7]))
        return terms["flow"]
    assert isinstance(model, VITS)
    terms = model.loss_terms(
        torch.arange(18).view(2, 9), torch.tensor([9, 6]), noise(2, 9, 20).abs(), torch.tensor([20, 14]),
        noise=_same, duration_noise=_same,
    )  # fmt: skip
    return terms.kl + terms.duration + model.decoder(terms.latent[..., :6]).square().mean()


@every_row
def test_gradients_reach_every_parameter(row: System) -> None:
    model = tiny(row.stem).train()
    _loss(model).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


@every_row
def test_the_same_twice(row: System) -> None:
    model = tiny(row.stem)
    with torch.no_grad():
        assert torch.equal(_loss(model), _loss(model))
    other = tiny(row.stem)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# ---------------------------------------------------------------------------------------------------- on disk


@every_row
def test_our_own_form_gives_the_model_back(row: System, tmp_path: Path) -> None:
    model = tiny(row.stem)
    assert isinstance(model.config, reference(row.config))
    save_native(tmp_path, row.stem, model.config, model.state_dict(), {"note": "tiny"})
    about = open_native(tmp_path)
    assert about.system == row.stem and about.settings == {"note": "tiny"}
    config = from_dict(reference(row.config), about.config)
    assert config == model.config
    again = build(reference(row.model), config, about.tensors())
    theirs = model.state_dict()
    assert again.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in again.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(
            _loss(again), _loss(model), rtol=1e-5
        )  # the file changes the order in memory, so the rounding


@every_row
def test_a_configuration_is_strict_and_survives_json(row: System) -> None:
    config = tiny(row.stem).config
    plain = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), plain) == config
    known = next(iter(plain))
    with pytest.raises(ConfigError, match=f"did you mean '{known}'"):
        from_dict(type(config), {**plain, f"{known}x": 1})
