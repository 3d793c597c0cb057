"""SenseVoice at a tiny size, its Kaldi features and its files: rows do not touch, faults are told, it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import randomised

from vivavoce.asr.sensevoice import (
    QUERIES,
    SenseVoice,
    SenseVoiceConfig,
    best_tokens,
    sinusoids,
    spell,
)
from vivavoce.asr.sensevoice_files import import_sensevoice
from vivavoce.audio.kaldi import KaldiFormat, kaldi_fbank, kaldi_filters
from vivavoce.checkpoints.layouts.sensevoice import PUBLISHED, Piece, read_pieces, read_statistics
from vivavoce.checkpoints.read import Checkpoint, open_checkpoint
from vivavoce.checkpoints.rules import detect, export_weights
from vivavoce.errors import AudioError, CheckpointError, ConfigError, UnknownNameError

STATISTICS = "<Nnet>\n<Splice> {w} {w}\n[ 0 ]\n<AddShift> {w} {w}\n<LearnRateCoef> 0 [ {shift} ]\n" \
             "<Rescale> {w} {w}\n<LearnRateCoef> 0 [ {scale} ]\n</Nnet>\n"  # fmt: skip


def model(config: SenseVoiceConfig | None = None) -> SenseVoice:
    """Random weights and statistics: nothing is zero or one."""
    made = SenseVoice(config or SenseVoiceConfig.tiny())
    randomised(made)
    generator = torch.Generator().manual_seed(1)
    made.shift = torch.randn(made.shift.shape, generator=generator) - 8
    made.scale = torch.rand(made.scale.shape, generator=generator) * 0.2 + 0.1
    return made


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------- Kaldi's features
def by_hand(wave: np.ndarray, form: KaldiFormat) -> np.ndarray:
    """Features one frame at a time, straight from the definition, in float64."""
    wave, half = wave.astype(np.float64) * form.scale, form.sample_rate / 2
    frames, before = form.frames(len(wave)), form.win_length // 2 - form.hop_length // 2
    if not form.snip_edges:
        wave = np.pad(wave, (before, form.win_length), mode="symmetric")
    top = form.f_max if form.f_max > 0 else half + form.f_max
    low, high = (1127 * math.log(1 + hz / 700) for hz in (form.f_min, top))
    width = (high - low) / (form.n_mels + 1)
    rows = []
    for t in range(frames):
        frame = wave[t * form.hop_length :][: form.win_length]
        frame = frame - frame.mean()
        frame = frame - form.preemphasis * np.concatenate([frame[:1], frame[:-1]])
        phase = 2 * math.pi * np.arange(form.win_length) / (form.win_length - 1)
        window = 0.54 - 0.46 * np.cos(phase) if form.window == "hamming" else (0.5 - 0.5 * np.cos(phase)) ** 0.85
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        row = []
        for m in range(form.n_mels):
            centre, energy = low + (m + 1) * width, 0.0
            for k in range(256):
                away = abs(1127 * math.log(1 + k * form.sample_rate / 512 / 700) - centre)
                energy += power[k] * max(0.0, 1 - away / width)
            row.append(math.log(max(energy, 2**-23)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("window", ["povey", "hamming"])
@pytest.mark.parametrize("snip", [True, False])
def test_features_follow_the_definition(window, snip):
    form = KaldiFormat(n_mels=23, window=window, snip_edges=snip, f_max=-400.0 if snip else 7600.0)
    wave = noise(1_000)
    got, wanted = kaldi_fbank(wave[None], form)[0], by_hand(wave.numpy(), form)
    assert tuple(got.shape) == wanted.shape
    assert np.abs(got.numpy() - wanted).max() / np.abs(wanted).max() < 1e-4


def test_switched_off_steps_change_the_features():
    wave, form = noise(1_000)[None] + 0.3, KaldiFormat()
    whole = kaldi_fbank(wave, form)
    for change in ({"preemphasis": 0.0}, {"remove_mean": False}, {"scale": 1.0}, {"window": "hamming"}):
        assert (kaldi_fbank(wave, replace(form, **change)) - whole).abs().max() > 0.01


def test_silence_has_the_floor_and_short_waves_have_no_frames():
    form = KaldiFormat(n_mels=8)
    assert torch.allclose(kaldi_fbank(torch.zeros(1, 800), form), torch.tensor(2.0**-23).log())
    assert kaldi_fbank(torch.zeros(2, 399), form).shape == (2, 0, 8)
    assert (
        form.frames(399) == 0
        and form.frames(400) == 1
        and form.frames(torch.tensor([0, 559, 560])).tolist() == [0, 1, 2]
    )
    assert replace(form, snip_edges=False).frames(240) == 2


def test_filters_leave_out_the_last_bin_and_overlap_to_one():
    filters = kaldi_filters(KaldiFormat(n_mels=20))
    inside = filters[:, 12:200].sum(0)
    assert not filters[:, -1].any() and torch.allclose(inside, torch.ones_like(inside), atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(long=st.integers(900, 2_000), short=st.integers(1, 2_000))
def test_reflected_edges_are_those_of_the_row_itself(long, short):
    form = KaldiFormat(n_mels=8, snip_edges=False)
    long = max(long, short)
    batch = torch.stack([noise(long), noise(long, 1)])
    both = kaldi_fbank(batch, form, torch.tensor([long, short]))
    alone = kaldi_fbank(batch[1:, :short], form)
    torch.testing.assert_close(both[1, : form.frames(short)], alone[0], rtol=1e-4, atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- model
def test_positions_are_counted_as_they_come():
    net = model()
    for samples in (400, 559, 560, 720, 879, 880, 5_000):
        states, count = net(noise(samples)[None])
        assert states.shape[1] == int(count) == net.config.positions(samples)
    assert SenseVoiceConfig.published().positions(16_000) == 98 // 6 + 1 + 4


def test_frames_lie_side_by_side_and_the_edges_repeat():
    net = model()
    with torch.no_grad():
        net.shift.zero_()
        net.scale.fill_(1.0)
    wave = noise(400 + 160 * 5)  # six frames: 0 to 5
    frames = kaldi_fbank(wave[None], net.config.fbank)[0]
    features, count = net.features(wave[None])
    wanted = [(0, 0, 1), (1, 2, 3), (3, 4, 5)]
    assert count.tolist() == [3]
    for position, index in enumerate(wanted):
        assert torch.equal(features[0, position], frames[list(index)].flatten())
    published = SenseVoice(replace(net.config, stacked=7, hop=6))
    features, _ = published.features(wave[None])
    assert torch.equal(features[0, 0].unflatten(0, (7, -1)), frames[[0, 0, 0, 0, 1, 2, 3]])


@torch.inference_mode()
@settings(max_examples=20, deadline=None)
@given(samples=st.lists(st.integers(400, 6_000), min_size=2, max_size=4))
def test_padded_rows_do_not_change_a_row(samples):
    net, longest = model(), max(samples)
    waves = torch.stack([noise(longest, seed) for seed in range(len(samples))])  # noise, not zeros, lies behind the end
    languages, forms = ["en", "zh", "auto", "ko"][: len(samples)], ["woitn", "withitn"] * 2
    both, count = net(waves, torch.tensor(samples), languages, forms[: len(samples)])
    for row, length in enumerate(samples):
        alone, alone_count = net(waves[row : row + 1, :length], None, languages[row], forms[row])
        assert int(count[row]) == int(alone_count) == alone.shape[1]
        torch.testing.assert_close(both[row, : count[row]], alone[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_every_query_is_heard():
    net, wave = model(), noise(3_000)[None]
    features, count = net.features(wave)
    plain, _ = net.encode(features, count)
    assert not torch.allclose(net.encode(features, count, language="ja")[0], plain)
    assert not torch.allclose(net.encode(features, count, textnorm="withitn")[0], plain)
    for number in (0, 1, 2, 15):
        net.queries.weight[number] *= -1
        assert not torch.allclose(net.encode(features, count)[0], plain)
        net.queries.weight[number] *= -1


def test_positions_count_from_one_and_fall_together_in_half_precision():
    table = sinusoids(600, 8, torch.zeros(1))
    assert torch.allclose(table[0, :4], (10_000 ** (-torch.arange(4) / 3)).sin(), atol=1e-6)
    assert torch.allclose(table[599, 4:], (600 * 10_000 ** (-torch.arange(4) / 3)).cos(), atol=1e-4)
    half = sinusoids(600, 8, torch.zeros(1).bfloat16())
    assert torch.equal(half[399], half[400]) and not torch.equal(table[399], table[400])


def test_greedy_reading_joins_repeats_and_drops_blanks_and_padding():
    best = torch.tensor([[3, 3, 0, 3, 5, 5, 0], [0, 4, 4, 2, 9, 9, 9]])
    logits = torch.nn.functional.one_hot(best, 10).float()
    assert best_tokens(logits, torch.tensor([7, 4])) == [[3, 3, 5], [4, 2]]


def test_it_learns_labels_and_text():
    torch.manual_seed(0)
    net = SenseVoice(SenseVoiceConfig.tiny())
    net.shift.fill_(-10.0)
    net.scale.fill_(0.2)
    waves = torch.stack([noise(4_000), torch.sin(torch.arange(4_000) * 0.3)])
    tokens = torch.tensor([[20, 21, 22, 23, 5, 6, 7], [24, 21, 25, 23, 8, 9, 0]])
    lengths, optimizer, losses = torch.tensor([4_000, 3_500]), torch.optim.Adam(net.parameters(), 3e-3), []
    for _ in range(40):
        terms = net.loss_terms(waves, lengths, tokens, torch.tensor([7, 6]))
        loss = terms["labels"] + terms["text"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_faults_are_told_in_one_sentence():
    net = model()
    with pytest.raises(AudioError, match="shorter than 25 ms"):
        net(noise(4_000).expand(2, -1), torch.tensor([4_000, 300]))
    with pytest.raises(UnknownNameError, match="did you mean 'yue'"):
        net(noise(4_000)[None], language="yu")
    with pytest.raises(UnknownNameError, match="use one of withitn, woitn"):
        net(noise(4_000)[None], textnorm="plain")
    with pytest.raises(ConfigError, match="2 names were given for 1 clips"):
        net(noise(4_000)[None], language=["en", "zh"])
    with pytest.raises(ConfigError, match="odd memory"):
        replace(SenseVoiceConfig.tiny(), memory=4)


def test_half_precision_weights_read_float_features():
    net = model()
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16()
    features, count = net.features(noise(4_000)[None])
    states, _ = net.encode(features, count)
    assert features.dtype == torch.float32 and states.dtype == torch.bfloat16 and states.isfinite().all()


def test_published_size():
    with torch.device("meta"):
        net = SenseVoice(SenseVoiceConfig.published())
    assert sum(parameter.numel() for parameter in net.parameters()) == 233_999_167


# -------------------------------------------------------------------------------------------------------------- files
def write_statistics(path: Path, net: SenseVoice) -> Path:
    shift, scale = (" ".join(f"{x:.9g}" for x in values.tolist()) for values in (net.shift, net.scale))
    path.write_text(STATISTICS.format(w=net.config.width, shift=shift, scale=scale))
    return path


def file_config() -> SenseVoiceConfig:
    """A width of seven frames and four heads, as :meth:`SenseVoiceConfig.of_shapes` supposes."""
    return replace(SenseVoiceConfig.tiny(), stacked=7, hop=6, n_mels=8, n_heads=4)


def test_a_published_folder_is_read_and_written_back(tmp_path):
    net = model(file_config())
    theirs = export_weights(PUBLISHED, net.state_dict())
    statistics = {key: theirs.pop(key) for key in list(theirs) if key.startswith("am.mvn")}
    torch.save({"state_dict": theirs}, tmp_path / "model.pt")
    write_statistics(tmp_path / "am.mvn", net)
    config, weights = import_sensevoice(open_checkpoint(tmp_path))
    assert config == net.config and weights.keys() == net.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert detect(theirs, [PUBLISHED]) is PUBLISHED and len(statistics) == 2
    with pytest.raises(CheckpointError, match=r"no am\.mvn beside it"):
        import_sensevoice(open_checkpoint(tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match="no SenseVoice checkpoint"):
        import_sensevoice(Checkpoint("torch", tmp_path / "model.pt", {"x": torch.zeros(1)}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<AddShift>",
        "<AddShift> 2 2 [ 1 2",
        "<AddShift> 2 2 <LearnRateCoef> 0 [ 1 2 ]",
        "<AddShift> 3 3 [ 1 2 ] <Rescale> 2 2 [ 1 2 ]",
        "<AddShift> 2 2 [ 1 nan ] <Rescale> 2 2 [ 1 2 ]",
        "<AddShift> 2 2 [ 1 x ] <Rescale> 2 2 [ 1 2 ]",
    ],
)
def test_damaged_statistics_are_told(tmp_path, text):
    (tmp_path / "am.mvn").write_text(text)
    with pytest.raises(CheckpointError, match=r"am\.mvn is damaged"):
        read_statistics(tmp_path / "am.mvn")


def field(number: int, value: bytes | int) -> bytes:
    """One field of the wire format, values below 128."""
    return bytes([number * 8, value]) if isinstance(value, int) else bytes([number * 8 + 2, len(value)]) + value


def write_pieces(path: Path, pieces: list[tuple[str, int]]) -> Path:
    entries = [field(1, text.encode()) + b"\x15\0\0\x80\xbf" + field(3, kind) for text, kind in pieces]
    path.write_bytes(b"".join(field(1, entry) for entry in entries) + field(2, field(3, 2)))
    return path


def test_a_vocabulary_is_read_and_spelled(tmp_path):
    kinds = [("<unk>", 2), ("<s>", 3), ("▁hello", 1), ("▁wor", 1), ("ld", 1), ("<|en|>", 4), ("天", 1), ("<0xE5>", 6),
             ("<0xA4>", 6), ("<0xA9>", 6)]  # fmt: skip
    pieces = read_pieces(write_pieces(tmp_path / "x.model", kinds))
    assert len(pieces) == len(kinds) and pieces[2] == Piece("▁hello".encode())
    assert spell([2, 3, 4], pieces) == "hello world"
    assert spell([5, 2, 1, 6, 7, 8, 9, 0], pieces) == "<|en|> hello天天 ⁇ "
    assert spell([], pieces) == ""


@pytest.mark.parametrize(
    "content", [b"\x0a\x7f", b"\x0b", b"\x12\x02\x18\x02", field(1, field(1, b"<0xZZ>") + field(3, 6))]
)
def test_damaged_vocabularies_are_told(tmp_path, content):
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_pieces(tmp_path / "x.model")


def test_queries_stand_before_the_sound():
    assert QUERIES == 4 and model().queries.weight.shape[0] == 16
