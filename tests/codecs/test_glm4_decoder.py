"""The speech decoder in both forms: the causal one streams exactly at constant work, the published one is whole."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vivavoce import state as states
from vivavoce.checkpoints.layouts.glm4_decoder import PUBLISHED
from vivavoce.checkpoints.rules import export_weights, import_weights
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig, GLM4DecoderState, time_noise
from vivavoce.codecs.glm4_decoder_stream import ReferenceStream, continuing
from vivavoce.errors import ConfigError
from vivavoce.nn.flow_matching import cosine_schedule, euler, euler_times, straight_path, toward
from vivavoce.nn.relative import align, distances
from vivavoce.nn.sliding import slide, window_mask

CAUSAL, WHOLE = GLM4DecoderConfig.tiny_causal(), GLM4DecoderConfig.tiny()


def made(config: GLM4DecoderConfig) -> GLM4Decoder:
    """The model as it starts, with noise on top, so that no bias stays zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GLM4Decoder(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def drawn(model: GLM4Decoder, batch: int, n_tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (batch, n_tokens), generator=generator)
    return tokens, torch.randn(batch, model.config.n_mels, model.frames(n_tokens), generator=generator)


@torch.inference_mode()
def streamed(
    model: GLM4Decoder, tokens: Tensor, noise: Tensor, cuts: list[int], state: GLM4DecoderState | None = None
) -> Tensor:
    state = model.init_state(tokens.shape[0]) if state is None else state
    rate, mels, at, out = model.frames(1), [], 0, 0
    for cut in cuts:
        due = model.due(at, cut)
        mel, state = model.step(tokens[:, at : at + cut], state, noise[..., out * rate : (out + due) * rate])
        mels.append(mel)
        at, out = at + cut, out + due
    if model.lookahead:
        mels.append(model.flush(state, noise[..., out * rate :]))
    return torch.cat(mels, dim=-1)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def random_cuts(total: int, longest: int, seed: int) -> list[int]:
    dice, cuts = random.Random(seed), []
    while sum(cuts) < total:
        cuts.append(min(dice.randint(1, longest), total - sum(cuts)))
    return cuts


# ---------------------------------------------------------------------------------------------------- the causal form


@pytest.mark.parametrize(
    "cuts", [[23], [1] * 23, *(random_cuts(23, longest, longest) for longest in (2, 5, 11))], ids=len
)
def test_any_cutting_gives_the_whole(cuts: list[int]) -> None:
    model = made(CAUSAL)
    tokens, noise = drawn(model, 2, 23)
    with torch.inference_mode():
        wanted = model(tokens, noise)
    close(streamed(model, tokens, noise, cuts), wanted)


def test_the_nano_size_streams_too() -> None:
    model = made(GLM4DecoderConfig.nano())
    tokens, noise = drawn(model, 1, 30)
    with torch.inference_mode():
        wanted = model(tokens, noise)
    assert wanted.shape == (1, 80, 150)
    close(streamed(model, tokens, noise, random_cuts(30, 9, 1)), wanted)


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_a_look_ahead_streams_that_much_later_and_exactly(ahead: int, seed: int) -> None:
    model = made(replace(CAUSAL, lookahead=ahead))
    tokens, noise = drawn(model, 2, 17)
    with torch.inference_mode():
        wanted = model(tokens, noise)
    close(streamed(model, tokens, noise, random_cuts(17, 6, seed)), wanted)
    with torch.inference_mode():  # what comes later than the look-ahead changes nothing
        longer = model(torch.cat([tokens, tokens], 1), torch.cat([noise, noise], 2))[..., : noise.shape[2]]
    settled = model.frames(17 - ahead)
    close(longer[..., :settled], wanted[..., :settled])
    assert (longer - wanted).abs().max() > 1e-4


def test_rows_of_a_batch_end_each_by_itself() -> None:
    model = made(replace(CAUSAL, lookahead=2))
    tokens, noise = drawn(model, 2, 12)
    with torch.inference_mode():
        both = model(tokens, noise, lengths=torch.tensor([12, 7]))
        alone = model(tokens[1:, :7], noise[1:, :, : model.frames(7)])
    close(both[1:, :, : model.frames(7)], alone)


def test_a_speaker_and_the_number_of_steps_stay_with_the_stream() -> None:
    model = made(replace(CAUSAL, speaker_dim=4))
    tokens, noise = drawn(model, 1, 9)
    speaker = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    with torch.inference_mode():
        wanted, nobody = model(tokens, noise, speaker=speaker, steps=3), model(tokens, noise, steps=3)
        state = model.init_state(1, speaker=speaker, steps=3)
    close(streamed(model, tokens, noise, [2, 7], state), wanted)
    assert (wanted - nobody).abs().max() > 1e-3


def test_later_tokens_and_noise_never_change_earlier_mel() -> None:
    model = made(CAUSAL)
    tokens, noise = drawn(model, 1, 20)
    others, other_noise = drawn(model, 1, 20, seed=1)
    cut, rate = 13, model.frames(1)
    others[:, :cut], other_noise[..., : cut * rate] = tokens[:, :cut], noise[..., : cut * rate]
    with torch.inference_mode():
        first, second = model(tokens, noise), model(others, other_noise)
    close(second[..., : cut * rate], first[..., : cut * rate])
    assert (second[..., cut * rate :] - first[..., cut * rate :]).abs().max() > 1e-3


def test_the_window_ends() -> None:
    """One transformer block, one encoder layer: what lies far enough back is not read."""
    model = made(replace(CAUSAL, n_layers=1, n_mid_blocks=0, steps=1))
    tokens, noise = drawn(model, 1, 40)
    others = tokens.clone()
    others[:, 0] = (others[:, 0] + 1) % CAUSAL.vocab_size
    with torch.inference_mode():
        change = (model(others, noise) - model(tokens, noise)).abs().amax(dim=(0, 1))
    reach = CAUSAL.token_window + 2 * CAUSAL.window // 3 + 24 // 3 + 2  # encoder, two blocks, convolutions, its own
    assert change[:3].max() > 1e-3
    assert change[reach * 3 :].max() == 0


def test_rows_do_not_touch_each_other() -> None:
    """Rows that joined at different times share one batch."""
    model = made(CAUSAL)
    tokens, noise = drawn(model, 2, 20)
    rate, starts = model.frames(1), (9, 2)
    begun = []
    with torch.inference_mode():
        for row, start in enumerate(starts):
            state = model.init_state(1)
            _, state = model.step(tokens[row : row + 1, :start], state, noise[row : row + 1, :, : start * rate])
            begun.append(state)
        together = states.stack(begun)
        pieces = [tokens[row : row + 1, start : start + 11] for row, start in enumerate(starts)]
        noises = [noise[row : row + 1, :, start * rate : (start + 11) * rate] for row, start in enumerate(starts)]
        mel = streamed(model, torch.cat(pieces), torch.cat(noises), [4, 1, 6], together)
        for row, start in enumerate(starts):
            wanted = model(tokens[row : row + 1], noise[row : row + 1])
            close(mel[row : row + 1], wanted[..., start * rate : (start + 11) * rate])


def test_a_step_costs_the_same_at_any_time() -> None:
    model = made(CAUSAL)
    tokens, noise = drawn(model, 1, 60)
    rate, state, costs, sizes = model.frames(1), model.init_state(1), [], []
    for at in range(0, 60, 4):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            _, state = model.step(tokens[:, at : at + 4], state, noise[..., at * rate : (at + 4) * rate])
        costs.append(counter.get_total_flops())
        sizes.append(states.nbytes(state))
    assert costs[0] > 0
    assert len(set(costs)) == len(set(sizes)) == 1


def test_offline_attention_in_blocks_is_masked_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (3, 6, 9, 12, 30):
        query, key, value = torch.randn(3, 2, 3, length, 4, generator=generator)
        mask = window_mask(length, 6, 3, query.device)[:, 6:]
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(slide(query, key, value, 6, 3), wanted)


# ---------------------------------------------------------------------------------------------------- both forms


@pytest.mark.parametrize("config", [CAUSAL, WHOLE], ids=["causal", "published"])
def test_padding_changes_nothing(config: GLM4DecoderConfig) -> None:
    model = made(config)
    tokens, noise = drawn(model, 2, 19)
    lengths = torch.tensor([19, 9])
    short = model.frames(9)
    with torch.inference_mode():
        mel = model(tokens, noise, lengths=lengths)
        close(mel[1:, :, :short], model(tokens[1:, :9], noise[1:, :, :short]))
    assert mel[1, :, short:].abs().max() == 0


@pytest.mark.parametrize("config", [CAUSAL, WHOLE], ids=["causal", "published"])
def test_gradients_reach_every_parameter(config: GLM4DecoderConfig) -> None:
    model = made(config).train()
    tokens, noise = drawn(model, 2, 9)
    _, mel = drawn(model, 2, 9, seed=1)
    speaker = None if config.causal else torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    terms = model.loss_terms(
        tokens, mel, noise=noise, time=torch.tensor([0.2, 0.7]), lengths=torch.tensor([9, 7]), speaker=speaker,
        prompt_frames=None if config.causal else torch.tensor([8, 0]), keep=torch.tensor([True, True]),
    )  # fmt: skip
    terms["flow"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", [CAUSAL, WHOLE], ids=["causal", "published"])
def test_the_loss_is_the_error_of_what_is_predicted(config: GLM4DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(config)
    tokens, noise = drawn(model, 2, 8)
    _, mel = drawn(model, 2, 8, seed=1)
    lengths, time = torch.tensor([8, 5]), torch.tensor([0.3, 0.9])
    seen: list[tuple[Tensor, Tensor]] = []

    def off_by_two(x: Tensor, time: Tensor, lengths: Tensor | None = None) -> Tensor:
        seen.append((x, time))
        return (mel if config.predicts == "data" else mel - noise) + 2.0

    monkeypatch.setattr(model.unet, "forward", off_by_two)
    loss = model.loss_terms(tokens, mel, noise=noise, time=time, lengths=lengths)["flow"]
    assert loss.item() == pytest.approx(4.0, rel=1e-4)
    x, flow_time = seen[0]
    torch.testing.assert_close(flow_time, cosine_schedule(time))
    share = flow_time[:, None, None]
    torch.testing.assert_close(x[:, : config.n_mels], (1 - share) * noise + share * mel, atol=1e-5, rtol=1e-5)
    mel[1, :, model.frames(5) :] += 100  # what lies behind the row's end is not looked at
    again = model.loss_terms(tokens, mel, noise=noise, time=time, lengths=lengths)["flow"]
    torch.testing.assert_close(again, loss)


@pytest.mark.parametrize("config", [CAUSAL, WHOLE], ids=["causal", "published"])
def test_trains_in_bfloat16(config: GLM4DecoderConfig) -> None:
    model = made(config).train()
    tokens, noise = drawn(model, 2, 24)
    _, mel = drawn(model, 2, 24, seed=1)
    time, lengths = torch.tensor([0.2, 0.7]), torch.tensor([24, 20])
    exact = model.loss_terms(tokens, mel, noise=noise, time=time, lengths=lengths)["flow"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss_terms(tokens, mel, noise=noise, time=time, lengths=lengths)["flow"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ---------------------------------------------------------------------------------------------------- published form


def test_guidance_moves_away_from_the_unconditional_direction() -> None:
    model = made(replace(WHOLE, steps=1))
    plain = GLM4Decoder(replace(WHOLE, steps=1, guidance=0.0)).eval()
    plain.load_state_dict(model.state_dict())
    tokens, noise = drawn(model, 1, 9)
    with torch.inference_mode():
        conditional = plain(tokens, noise) - noise
        told = torch.cat([noise, torch.zeros(1, 3 * WHOLE.n_mels, noise.shape[-1])], dim=1)
        nothing = model.unet(told, torch.zeros(1))
        close(model(tokens, noise) - noise, 1.7 * conditional - 0.7 * nothing)


def test_known_past_and_speaker_matter() -> None:
    model = made(WHOLE)
    tokens, noise = drawn(model, 1, 12)
    past = torch.full((1, WHOLE.n_mels, 30), 2.0)
    with torch.inference_mode():
        plain = model(tokens, noise)
        assert (model(tokens, noise, prompt_mel=past) - plain).abs().max() > 1e-3
        assert (model(tokens, noise, speaker=torch.ones(1, 5)) - plain).abs().max() > 1e-3
        close(model(tokens, noise, speaker=3 * torch.ones(1, 5)), model(tokens, noise, speaker=torch.ones(1, 5)))


def test_published_weights_are_written_and_read() -> None:
    model = made(WHOLE)
    ours = {key: value.contiguous() for key, value in model.state_dict().items()}
    theirs = export_weights(PUBLISHED, ours)
    assert theirs["decoder.estimator.down_blocks.0.2.conv.weight"].shape == (16, 16, 3)
    assert theirs["decoder.estimator.up_blocks.0.2.conv.weight"].shape == (16, 16, 4)
    read = import_weights(PUBLISHED, theirs, {key: tuple(value.shape) for key, value in ours.items()})
    assert read.keys() == ours.keys()
    assert all(torch.equal(read[key], ours[key]) for key in ours)


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = GLM4Decoder(GLM4DecoderConfig.published())
    assert sum(parameter.numel() for parameter in model.parameters()) == 111_166_208
    assert [model.frames(n) for n in (1, 5, 10, 21, 64)] == [6, 34, 68, 144, 441]


# ------------------------------------------------------------------------------------- the reference's own streaming


class Echo:
    """A vocoder whose source counts samples and whose wave is its source."""

    hop_length = 256

    def f0(self, mel: Tensor) -> Tensor:
        return mel[:, 0]

    def source(self, f0: Tensor, phase: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        return noise[:, :1]

    def __call__(self, mel: Tensor, *, source: Tensor) -> Tensor:
        assert source.shape[-1] == mel.shape[-1] * self.hop_length
        return source[:, 0]


def counting(samples: int) -> tuple[Tensor | None, Tensor | None]:
    return None, torch.arange(samples, dtype=torch.float32)[None, None] + 1


def test_one_final_call_is_a_whole_decode() -> None:
    flow = made(WHOLE)
    tokens, noise = drawn(flow, 1, 14)
    with torch.inference_mode():
        stream = ReferenceStream(flow, continuing(Echo(), counting))
        wave, mel, _ = stream.step(tokens, stream.init_state(), noise, final=True)
        close(mel, flow(tokens, noise))
    assert wave.shape == (1, mel.shape[-1] * 256)


@torch.inference_mode()
def test_calls_keep_back_cross_fade_and_continue_the_source() -> None:
    flow = made(WHOLE)
    stream = ReferenceStream(flow, continuing(Echo(), counting))
    tokens, noise = drawn(flow, 1, 20)
    state = stream.init_state()
    assert stream.frames(state, 10) == 68
    wave, mel, state = stream.step(tokens[:, :10], state, noise[..., :68])
    first = flow(tokens[:, :10], noise[..., :68])
    close(mel, first[..., :34])
    assert wave.shape == (1, 33 * 256)  # the last frame's samples come again

    assert stream.frames(state, 10) == 137
    wave, again, _ = stream.step(tokens[:, 10:], state, noise, final=True)
    assert (again.shape[-1], wave.shape[-1]) == (104, 104 * 256)
    close(again[..., 0], mel[..., -1])
    close(wave[:, :256], torch.arange(33 * 256, 34 * 256)[None] + 1.0)  # with what drove it
    second = flow(tokens, noise, prompt_mel=mel)[..., 34:]
    close(again[..., 35:], second[..., 34:])
    rise, fall = (0.54 - 0.46 * torch.cos(2 * torch.pi * torch.arange(68) / 67)).chunk(2)
    close(again[..., 1:35], second[..., :34] * rise + first[..., 34:] * fall)


def test_a_first_call_with_nothing_to_give_is_refused() -> None:
    flow = made(WHOLE)
    stream = ReferenceStream(flow, continuing(Echo(), counting))
    tokens, noise = drawn(flow, 1, 5)
    with pytest.raises(ConfigError, match="more than 5"):
        stream.step(tokens, stream.init_state(), noise)


# ---------------------------------------------------------------------------------------------------- parts


def test_noise_depends_on_the_frame_alone() -> None:
    whole = time_noise(0, 1500, 80)
    assert whole.shape == (80, 1500)
    for first, frames in ((0, 1), (255, 2), (256, 256), (3, 900), (1400, 100)):
        assert torch.equal(time_noise(first, frames, 80), whole[:, first : first + frames])
    assert not torch.equal(time_noise(0, 10, 80, seed=43), whole[:, :10])
    assert not torch.equal(whole[:, :256], whole[:, 256:512])
    assert abs(float(whole.mean())) < 0.01 and abs(float(whole.std()) - 1) < 0.01


def test_euler_follows_a_straight_path_exactly() -> None:
    noise, data = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).split(1)
    times = euler_times(4, noise)
    assert times[0] == 0 and times[-1] == 1 and bool((times.diff().diff() > 0).all())
    _, velocity = straight_path(noise, data, torch.tensor([0.4]))
    torch.testing.assert_close(euler(lambda x, time, n: velocity, noise, 4), data, atol=1e-5, rtol=1e-5)
    found = euler(lambda x, time, n: toward(data, x, time), noise, 4)
    torch.testing.assert_close(found, data, atol=1e-5, rtol=1e-5)


def test_scores_by_distance_are_put_at_their_keys() -> None:
    for n_queries, n_keys in ((1, 1), (1, 4), (3, 3), (2, 5)):
        distance = torch.arange(n_keys - 1, -n_queries - 1, -1.0).expand(1, 1, n_queries, -1)
        query, key = torch.arange(n_keys - n_queries, n_keys)[:, None], torch.arange(n_keys)
        assert torch.equal(align(distance, n_keys)[0, 0], (query - key).float())
    table = distances(3, 2, 4, torch.zeros(1))
    torch.testing.assert_close(table[0], torch.tensor([2.0, 2.0, 0.02, 0.02]).sin().where(
        torch.tensor([True, False, True, False]), torch.tensor([2.0, 2.0, 0.02, 0.02]).cos()))  # fmt: skip


@pytest.mark.parametrize("change", [{"block": 4}, {"guidance": 0.7}, {"sample_rate": 22_050}, {"window": 7},
                                    {"channels": (16, 16)}, {"token_window": 0}])  # fmt: skip
def test_a_causal_form_that_cannot_stream_is_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        GLM4Decoder(replace(CAUSAL, **change))


def test_the_published_form_says_how_it_streams() -> None:
    with pytest.raises(ConfigError, match="ReferenceStream"):
        made(WHOLE).init_state(1)
