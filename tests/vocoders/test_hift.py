"""HiFT: published sizes, streaming laws with noise and phase, edges of the Fourier transforms, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import randomised

from vivavoce.errors import ConfigError
from vivavoce.state import stack
from vivavoce.vocoders.hift import HiFT, HiFTConfig, Synthesis, source_noise

TINY = HiFTConfig.tiny()


def small(seed=0):
    model = randomised(HiFT(TINY).double(), seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    model.predictor.head.bias.data.fill_(60.0)  # voiced and unvoiced frames
    model.predictor.head.weight.data.mul_(200.0)
    return model


def inputs(batch, frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(batch, TINY.n_mels, frames, generator=generator, dtype=torch.float64)
    phase = torch.rand(batch, TINY.harmonics + 1, generator=generator, dtype=torch.float64) * 2 * math.pi
    noise = torch.cat([source_noise(0, frames * TINY.hop_length, TINY.harmonics, seed + row) for row in range(batch)])
    return mel, phase, noise.double()


def run(model, mel, phase, noise, sizes):
    state, made, first = model.init_state(mel.shape[0], phase), [], 0
    for size in sizes:
        here = slice(first * TINY.hop_length, (first + size) * TINY.hop_length)
        wave, state = model.step(mel[..., first : first + size], state, noise=noise[..., here])
        made.append(wave)
        first += size
    made.append(model.flush(state))
    return torch.cat(made, 1)[:, model.delay :][:, : first * TINY.hop_length]


def test_sizes():
    with torch.device("meta"):
        published, nano = HiFT(HiFTConfig.published()), HiFT(HiFTConfig.nano())
    gains = 13_074  # of weight norm, which the published file counts too
    assert sum(p.numel() for p in published.parameters()) == 20_460_591 - gains
    assert 550_000 < sum(p.numel() for p in nano.parameters()) < 900_000
    assert (nano.hop_length, nano.config.sample_rate) == (256, 16_000) and nano.lookahead <= 8


@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=7), seed=st.integers(0, 5))
@torch.inference_mode()
def test_any_cutting_gives_the_offline_wave(sizes, seed):
    model, (mel, phase, noise) = small(seed), inputs(2, sum(sizes), seed)
    whole = model(mel, phase=phase, noise=noise)
    assert whole.shape == (2, sum(sizes) * TINY.hop_length)
    assert (run(model, mel, phase, noise, sizes) - whole).abs().max() <= 1e-9 * whole.abs().max()


@torch.inference_mode()
def test_long_streams_in_float32_keep_their_phase():
    model, (mel, phase, noise) = small().float(), inputs(1, 1500)
    mel, phase, noise = mel.float(), phase.float(), noise.float()
    f0 = model.f0(mel)
    assert (f0 > TINY.voiced_above).any() and (f0 <= TINY.voiced_above).any()
    whole = model(mel, phase=phase, noise=noise)
    assert (run(model, mel, phase, noise, [7] * 214 + [2]) - whole).abs().max() <= 1e-5 * whole.abs().max()


@torch.inference_mode()
def test_rows_of_different_age_live_together():
    model, (mel, phase, noise) = small(), inputs(2, 60)
    hop = TINY.hop_length
    _, older = model.step(mel[:1, :, :25], model.init_state(1, phase[:1]), noise=noise[:1, :, : 25 * hop])
    state = stack([older, model.init_state(1, phase[1:])])
    piece = torch.cat([mel[:1, :, 25:], mel[1:, :, :35]])
    heard = torch.cat([noise[:1, :, 25 * hop :], noise[1:, :, : 35 * hop]])
    both = model.step(piece, state, noise=heard)[0]
    whole = model(mel, phase=phase, noise=noise)
    assert torch.allclose(both[1, model.delay :], whole[1, : 35 * hop - model.delay], atol=1e-11)
    assert torch.allclose(both[0], whole[0, 25 * hop - model.delay : 60 * hop - model.delay], atol=1e-11)


@torch.inference_mode()
def test_padded_batch_equals_rows_alone():
    model, (mel, phase, noise) = small(), inputs(2, 33)
    both = model(mel, torch.tensor([33, 21]), phase=phase, noise=noise)
    alone = model(mel[1:, :, :21], phase=phase[1:], noise=noise[1:, :, : 21 * TINY.hop_length])
    assert torch.allclose(both[1, : alone.shape[1]], alone[0], atol=1e-11)


@torch.inference_mode()
def test_nothing_later_than_the_lookahead_matters_and_all_of_it_does():
    model, (mel, phase, noise) = small(), inputs(1, 60)
    other, known = mel.clone(), 45
    other[..., known:] += 1.0
    first, second = (model(x, phase=phase, noise=noise)[0] for x in (mel, other))
    settled = known * TINY.hop_length - model.delay
    assert torch.equal(first[:settled], second[:settled])
    assert not torch.allclose(first[settled : known * TINY.hop_length], second[settled : known * TINY.hop_length])


@torch.inference_mode()
def test_transforms_match_those_of_torch():
    """Mirrored analysis and overlap-add agree with the library's centred transforms, edges included."""
    model = HiFT(HiFTConfig.nano())
    wave, window = torch.randn(2, 640), torch.hann_window(16)
    bins = torch.stft(wave, 16, 4, 16, window, center=True, return_complex=True)
    ours = model.analysis.whole(wave, None)
    assert torch.allclose(ours, torch.cat([bins.real, bins.imag], 1), atol=1e-5)
    other = torch.randn_like(ours)
    other[:, [9, 17]] = 0.0  # the first and the last bin are real
    theirs = torch.istft(torch.complex(other[:, :9], other[:, 9:]), 16, 4, 16, window, center=True)
    assert torch.allclose(Synthesis(16, 4).whole(other, None), theirs, atol=1e-5)


@torch.inference_mode()
def test_source_is_a_sine_of_its_frequency():
    model = HiFT(HiFTConfig.nano())
    model.sines.merge.weight.data = torch.eye(1, 9)
    model.sines.merge.bias.data.zero_()
    f0 = torch.cat([torch.full((1, 63), 250.0), torch.zeros(1, 10)], 1)
    source = torch.atanh(model.source(f0)[0, 0])
    times = torch.arange(1, 63 * 256 + 1, dtype=torch.float64) / 16_000
    wanted = 0.1 * (2 * math.pi * 250.0 * times).sin()
    assert (source[: 63 * 256] - wanted).abs().max() < 1e-5
    assert source[63 * 256 :].abs().max() == 0


def test_noise_depends_on_its_place_only():
    long = source_noise(0, 3000, 8, seed=4)
    pieces = [source_noise(a, b - a, 8, seed=4) for a, b in ((0, 1), (1, 700), (700, 768), (768, 3000))]
    assert long.shape == (1, 9, 3000) and torch.equal(torch.cat(pieces, -1), long)
    assert abs(float(long.std()) - 1) < 0.02 and abs(float(long.mean())) < 0.02
    assert not torch.equal(long, source_noise(0, 3000, 8, seed=5))
    assert not torch.equal(long[..., :256], long[..., 256:512])


def test_gradients_reach_every_parameter_under_bfloat16():
    torch.manual_seed(0)
    model = HiFT(TINY).train()
    mel, _, noise = inputs(2, 12)
    f0 = model.f0(mel.float())
    voiced = torch.full_like(f0, 60.0)
    with torch.autocast("cpu", torch.bfloat16):
        wave = model(mel.float(), f0=voiced, noise=noise.float())
    assert wave.dtype == torch.float32
    (wave.square().sum() + f0.sum()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not missing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_runs(dtype):
    model, (mel, phase, noise) = small().float(), inputs(1, 12)
    whole = model(mel.float(), phase=phase, noise=noise.float(), f0=torch.full((1, 12), 60.0))
    near = model.to(dtype)(mel.float(), phase=phase, noise=noise.float(), f0=torch.full((1, 12), 60.0)).float()
    assert (near - whole).abs().max() < 0.2 * whole.abs().max()


def test_config_refuses_what_does_not_fit():
    with pytest.raises(ConfigError, match="upsample_kernels"):
        HiFTConfig(upsample_rates=(8, 8, 2))
    with pytest.raises(ConfigError, match="istft_n_fft"):
        HiFTConfig(istft_hop=16)
