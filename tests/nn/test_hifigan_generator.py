"""The HiFi-GAN generator: published sizes, streaming laws, padding, constant work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import ConfigError
from vivavoce.nn.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.state import fork, stack


def small(block_type=2, speaker_dim=0):
    torch.manual_seed(0)
    config = HiFiGANConfig(
        in_channels=5,
        channels=8,
        upsample_rates=(4, 3),
        upsample_kernels=(8, 7),
        block_type=block_type,
        block_kernels=(3, 5),
        block_dilations=((1, 2), (1, 3)),
        speaker_dim=speaker_dim,
    )
    return HiFiGAN(config).double().eval()


def run(model, x, sizes, state=None, speaker=None):
    state, out = model.init_state(x.shape[0]) if state is None else state, []
    for piece in x.split(sizes, -1):
        y, state = model.step(piece, state, speaker)
        out.append(y)
    out.append(model.flush(state, speaker))
    return torch.cat(out, -1)[:, model.delay :][:, : x.shape[-1] * model.hop_length]


@pytest.mark.parametrize(("config", "parameters"), [("v1", 13_926_017), ("v2", 925_985), ("v3", 1_462_273)])
def test_published_sizes(config, parameters):
    with torch.device("meta"):
        model = HiFiGAN(getattr(HiFiGANConfig, config)())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.hop_length == 256


@settings(max_examples=25, deadline=None)
@given(block_type=st.sampled_from([1, 2]), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_any_cutting_gives_the_offline_wave(block_type, sizes):
    model, x = small(block_type), torch.randn(2, 5, sum(sizes), dtype=torch.float64)
    with torch.inference_mode():
        whole = model(x)
        assert torch.allclose(run(model, x, sizes), whole, atol=1e-12 * float(whole.abs().max()) + 1e-14)


def test_rows_of_different_age_live_together():
    model, x = small(), torch.randn(2, 5, 20, dtype=torch.float64)
    with torch.inference_mode():
        whole = model(x)
        _, older = model.step(x[:1, :, :7], model.init_state(1))
        kept = fork(older)
        state = stack([older, model.init_state(1)])
        piece = torch.cat([x[:1, :, 7:], x[1:, :, :13]])
        both, _ = model.step(piece, state)
        alone, _ = model.step(x[:1, :, 7:], kept)
    assert torch.allclose(both[:1], alone, atol=1e-13)
    start = model.delay
    assert torch.allclose(both[1, start:], whole[1, : both.shape[1] - start], atol=1e-13)


def test_padded_batch_equals_rows_alone_and_speaker_tints():
    model, x = small(speaker_dim=3), torch.randn(2, 5, 11, dtype=torch.float64)
    speaker = torch.randn(2, 3, dtype=torch.float64)
    with torch.inference_mode():
        both = model(x, torch.tensor([11, 6]), speaker)
        alone = model(x[1:, :, :6], None, speaker[1:])
        assert torch.allclose(both[1, : alone.shape[1]], alone[0], atol=1e-13)
        assert not torch.allclose(both, model(x, torch.tensor([11, 6]), speaker.flip(0)))
        assert torch.allclose(run(model, x, [4, 7], speaker=speaker), model(x, None, speaker), atol=1e-13)


def test_long_waves_are_made_in_pieces(monkeypatch):
    model, x, lengths = small(), torch.randn(2, 5, 61, dtype=torch.float64), torch.tensor([61, 40])
    with torch.no_grad():
        whole, padded = model(x), model(x, lengths)
        monkeypatch.setattr("vivavoce.nn.hifigan.WHOLE_SAMPLES", 0)
        monkeypatch.setattr("vivavoce.nn.hifigan.PIECE_SAMPLES", 10 * 2 * model.hop_length)
        assert torch.allclose(model(x), whole, atol=1e-13)
        assert torch.allclose(model(x, lengths)[1, : 40 * 12], padded[1, : 40 * 12], atol=1e-13)


def test_work_per_step_is_constant():
    model, seen = small(), []
    for module in model.modules():
        if type(module).__name__ == "Conv1d":
            module.valid = _counted(module.valid, seen)
    state, works = model.init_state(1), []
    with torch.inference_mode():
        for _ in range(8):
            seen.clear()
            _, state = model.step(torch.randn(1, 5, 4, dtype=torch.float64), state)
            works.append(sum(seen))
    assert len(set(works)) == 1


def _counted(valid, seen):
    def counting(x, padding=0):
        seen.append(x.numel())
        return valid(x, padding)

    return counting


def test_gradients_reach_every_parameter():
    model = small(1, speaker_dim=2).train()
    model(
        torch.randn(1, 5, 4, dtype=torch.float64), None, torch.randn(1, 2, dtype=torch.float64)
    ).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_bfloat16_runs_and_is_near():
    model, x = small().float(), torch.randn(1, 5, 12)
    with torch.inference_mode():
        whole = model(x)
        near = model.bfloat16()(x).float()
    assert (near - whole).abs().max() < 0.05 * whole.abs().max()


def test_config_refuses_uneven_lists():
    with pytest.raises(ConfigError, match="upsample_kernels"):
        HiFiGANConfig(upsample_rates=(8, 8))
