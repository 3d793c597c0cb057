"""VITS: sizes, determinism, streaming laws, training terms, published layouts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.checkpoints.layouts.vits import ORIGINAL, PIPER, TRANSFORMERS
from vivavoce.checkpoints.rules import Layout, detect, export_weights, import_weights
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.nn.streaming import Edges
from vivavoce.tts.vits import VITS, VITSConfig
from vivavoce.tts.vits_files import from_original


def config(durations="stochastic", n_speakers=0, trainable=True):
    tiny, speaker_dim = VITSConfig.tiny(), 6 if n_speakers else 0
    decoder = replace(tiny.decoder, speaker_dim=speaker_dim, block_kernels=(3, 5, 7), block_dilations=((1, 2),) * 3)
    return replace(
        tiny,
        durations=durations,
        n_speakers=n_speakers,
        speaker_dim=speaker_dim,
        trainable=trainable,
        decoder=decoder,
    )


def tiny(**changes):
    """Random weights with nothing left at its zero start, in float64."""
    torch.manual_seed(0)
    model = VITS(config(**changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def draw(shape):
    """The same numbers at the same places whatever the shape behind them."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape[1], 4000, generator=generator)[None, :, : shape[2]].double().expand(shape)


TOKENS, LENGTHS = torch.arange(22).view(2, 11) + 3, torch.tensor([11, 6])


def test_published_sizes():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in VITS(c).parameters()) for c in (VITSConfig.piper_medium(), VITSConfig.vctk())]
    assert counts[0] == 15_650_459
    assert 39.6e6 < counts[1] < 39.8e6


@pytest.mark.parametrize("durations", ["stochastic", "deterministic"])
def test_padded_batch_equals_rows_alone(durations):
    model, speakers = tiny(durations=durations, n_speakers=3), torch.tensor([0, 2])
    with torch.inference_mode():
        both, durations = model.synthesize(TOKENS, LENGTHS, noise=draw, duration_noise=draw, speaker=speakers)
        alone, single = model.synthesize(
            TOKENS[1:, :6], LENGTHS[1:], noise=draw, duration_noise=draw, speaker=speakers[1:]
        )
    assert torch.equal(durations[1, :6], single[0]) and durations[1, 6:].sum() == 0
    assert torch.allclose(both[1, : alone.shape[1]], alone[0], atol=1e-12)
    assert both.shape[1] == int(durations.sum(1).max()) * model.hop_length


def test_length_scale_and_speaker_matter():
    model = tiny(n_speakers=3)
    with torch.inference_mode():
        priors = [
            model.prior(TOKENS, LENGTHS, duration_noise=draw, length_scale=scale, speaker=torch.tensor([1, 1]))
            for scale in (1.0, 3.0)
        ]
    assert priors[1].lengths.sum() > 1.5 * priors[0].lengths.sum()
    with pytest.raises(ConfigError, match="3 speakers"):
        model.prior(TOKENS, LENGTHS, duration_noise=draw)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_streaming_equals_decoding_at_once(sizes):
    model, frames = tiny(), sum(sizes)
    sample = torch.randn(2, 12, frames).double()
    with torch.inference_mode():
        whole, state, out = model.decode(sample), model.init_state(2), []
        for piece in sample.split(sizes, -1):
            wave, state = model.step(piece, state)
            out.append(wave)
        out.append(model.flush(state))
    streamed = torch.cat(out, -1)[:, model.delay :][:, : whole.shape[1]]
    assert torch.allclose(streamed, whole, atol=1e-12)


def test_begin_is_a_cheaper_first_step():
    model = tiny()
    sample = torch.randn(1, 12, 60).double()
    with torch.inference_mode():
        whole = model.decode(sample)
        first, state = model.begin(sample[..., :40])
        second, state = model.step(sample[..., 40:], state)
        rest = model.flush(state)
    joined = torch.cat([first, second, rest], -1)[:, model.decoder.delay :][:, : whole.shape[1]]
    assert torch.allclose(joined, whole, atol=1e-12)
    assert first.shape[1] == (40 - model.flow.delay) * model.hop_length


def test_training_terms_reach_every_parameter():
    for durations in ("stochastic", "deterministic"):
        model = tiny(durations=durations, n_speakers=2).float().train()
        spectrogram, frames = torch.rand(2, 9, 20), torch.tensor([20, 14])
        terms = model.loss_terms(
            TOKENS,
            LENGTHS,
            spectrogram,
            frames,
            noise=torch.randn,
            duration_noise=torch.randn,
            speaker=torch.tensor([0, 1]),
        )
        assert terms.path.sum(1)[0].eq(1).all() and terms.path[1].sum() == 14
        wave = model.decoder(terms.latent[..., :4], None, model.speaker_vector(torch.tensor([0, 1])))
        (terms.kl + terms.duration + wave.square().sum()).backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        # softmax does not see a bias of the keys, and deep corners may underflow to no gradient at all
        assert [name for name in idle if "relative" not in name and "qkv.bias" not in name] == []


def test_duration_likelihood_is_a_bound_that_training_lowers():
    torch.manual_seed(0)
    model = VITS(config()).train()
    edges, hidden = Edges(torch.zeros(2).long(), torch.tensor([9, 5])), torch.randn(2, 16, 9)
    durations = torch.tensor([[1.0, 2, 3, 4, 5, 4, 3, 2, 1], [7, 7, 7, 7, 7, 0, 0, 0, 0]])
    optimizer, losses = torch.optim.Adam(model.duration_predictor.parameters(), 1e-2), []
    for _ in range(60):
        loss = model.duration_predictor.loss(hidden, edges, durations, torch.randn(2, 2, 9)).sum() / 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_convert_changes_the_speaker_and_keeps_the_length():
    model = tiny(n_speakers=2)
    arguments = (torch.rand(1, 9, 12).double(), torch.tensor([12]))
    with torch.inference_mode():
        same = model.convert(*arguments, torch.tensor([0]), torch.tensor([0]), noise=draw)
        other = model.convert(*arguments, torch.tensor([0]), torch.tensor([1]), noise=draw)
    assert same.shape == other.shape == (1, 12 * model.hop_length)
    assert not torch.allclose(same, other)


@pytest.mark.parametrize("layout", [ORIGINAL, TRANSFORMERS, PIPER], ids=lambda layout: layout.name)
@pytest.mark.parametrize("durations", ["stochastic", "deterministic"])
def test_layouts_write_and_read_back(layout: Layout, durations):
    if layout is PIPER and durations == "deterministic":
        pytest.skip("Piper's graphs have the stochastic predictor only")
    model = tiny(durations=durations, n_speakers=2, trainable=layout is not PIPER).float()
    ours = {key: value.contiguous() for key, value in model.state_dict().items()}
    theirs = export_weights(layout, ours)
    assert detect(theirs, (ORIGINAL, TRANSFORMERS, PIPER)) is layout
    back = import_weights(layout, theirs, {key: tuple(value.shape) for key, value in ours.items()})
    assert back.keys() == ours.keys()
    assert all(torch.allclose(back[key], ours[key], atol=1e-6) for key in ours)
    if layout is not TRANSFORMERS:
        found = from_original({key: tuple(value.shape) for key, value in theirs.items()}, 8000)
        assert replace(found, decoder=model.config.decoder, duration_dropout=0.5, posterior_layers=2) == replace(
            model.config, spectrogram_bins=found.spectrogram_bins
        )
    fewer = Layout(layout.name, layout.signature, layout.rows[:-1], layout.absent)
    with pytest.raises(CheckpointError):
        import_weights(fewer, theirs, {key: tuple(value.shape) for key, value in ours.items()})


def test_config_says_what_does_not_fit():
    with pytest.raises(ConfigError, match="n_heads"):
        replace(VITSConfig.tiny(), n_heads=3)
    with pytest.raises(ConfigError, match="in_channels"):
        replace(VITSConfig.tiny(), latent_dim=10)
