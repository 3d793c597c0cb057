"""Sessions of VITA-Audio: any cutting of the question gives the same answer, sound comes early and is decoded once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialogue.vita_parts import parts

from vivavoce.codecs.glm4_decoder import time_noise
from vivavoce.dialogue.vita_audio_prompts import answer_prompt
from vivavoce.dialogue.vita_audio_session import SpeechOut, VITAAudioSession, speak_codes
from vivavoce.dialogue.vita_audio_writing import MODES, Grammar, Writer, write_by_grammar
from vivavoce.errors import AudioError, ConfigError
from vivavoce.vocoders.hift import source_noise

QUESTION = torch.randn(20_000, generator=torch.Generator().manual_seed(5)) * 0.1


def answered(wave: torch.Tensor, cuts: list[int], mode: str = "boost", longest: int = 60):
    session = VITAAudioSession(parts(), mode=mode, longest=longest)
    at = 0
    for size in cuts:
        session.step(wave[at : at + size])
        at += size
    session.step(wave[at:])
    replies = list(session.answer())
    pieces = [reply.wave_piece for reply in replies if reply.wave_piece is not None]
    return session, torch.cat(pieces) if pieces else torch.zeros(0)


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 7_000), max_size=5))
def test_any_cutting_of_the_question_gives_the_same_answer(cuts):
    whole, sound = answered(QUESTION, [])
    session, again = answered(QUESTION, cuts)
    assert session.result.codes == whole.result.codes and session.result.text == whole.result.text
    torch.testing.assert_close(again, sound, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("modules", "reads"), [(0, None), (1, None), (1, 4), (10, None)])
def test_other_numbers_of_modules_and_whole_prompts(modules: int, reads: int | None):
    """What a session writes is what a writer gives for the whole prompt at once."""
    p, found = parts(modules, reads), []
    for cuts in ([len(QUESTION)], [6_000, 6_000, 8_000]):
        session, at = VITAAudioSession(p, longest=40), 0
        for size in cuts:
            session.step(QUESTION[at : at + size])
            at += size
        list(session.answer())
        found.append((session.result.codes, session.result.text, session.result.writers))
    assert found[0] == found[1]
    drafted = [number for number in found[0][2] if number is not None]
    assert (max(drafted, default=-1) + 1 <= modules) and bool(drafted) == bool(modules)
    writer = Writer.begin(p.model)
    codes = p.tokenizer(QUESTION[None]).values[0, 0].tolist()
    writer.add(p.tokens.prompt(answer_prompt(), [codes]))
    writer.begin_answer()
    grammar = Grammar(p.tokens, p.model.config.vocab_size, speaking=True, interleave=p.interleave)
    with torch.inference_mode():
        at_once = list(write_by_grammar(writer, grammar, MODES["boost"], 40))
    assert [made.module for made in at_once] == found[0][2]


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "turbo"])
def test_streamed_sound_is_that_of_the_whole_answer(mode):
    p = parts()
    session, sound = answered(QUESTION, [4_000, 4_000], mode)
    codes = torch.tensor([session.result.codes])
    frames = p.decoder.frames(codes.shape[1])
    mel = p.decoder(codes, time_noise(0, frames, p.decoder.config.n_mels)[None])
    noise = source_noise(0, frames * p.vocoder.hop_length, p.vocoder.config.harmonics, 0)
    wave = p.vocoder(mel * p.scale + p.mean, noise=noise)[0]
    assert sound.shape == wave.shape
    torch.testing.assert_close(sound, wave, rtol=0, atol=1e-5 * float(wave.abs().max()) + 1e-6)


def test_the_question_is_read_while_it_is_spoken():
    """After the last sound only the last block, the prompt's end and one backbone pass are left before speech."""
    session, _ = answered(QUESTION, [320 * 16 + 40] * 3)
    assert session.result.passes_before_sound == 1
    assert session.result.timing.first_sound is not None
    parts_ms = session.result.timing.parts
    assert set(parts_ms) == {"tokenise", "prefill", "drafts", "flow", "vocoder"}
    assert sum(parts_ms.values()) == pytest.approx(session.result.timing.first_sound)


def test_vanilla_needs_many_passes_before_its_first_sound():
    session, _ = answered(QUESTION, [], "vanilla")
    assert session.result.passes_before_sound is None or session.result.passes_before_sound > 1


def test_two_sessions_in_turns_do_not_touch():
    other = torch.randn(9_000, generator=torch.Generator().manual_seed(6)) * 0.1
    alone = [answered(wave, [])[0].result for wave in (QUESTION, other)]
    sessions = [VITAAudioSession(parts(), longest=60) for _ in range(2)]
    for session, wave in zip(sessions, (QUESTION, other), strict=True):
        session.step(wave[:5_000])
    for session, wave in zip(sessions, (QUESTION, other), strict=True):
        session.step(wave[5_000:])
    turns = [session.answer() for session in sessions]
    left = list(turns)
    while left:
        left = [turn for turn in left if next(turn, None) is not None]
    for session, wanted in zip(sessions, alone, strict=True):
        assert session.result.codes == wanted.codes and session.result.text == wanted.text


def test_each_code_is_decoded_once():
    """The work of the decoder is that of the codes, however many chunks they come in."""
    p, seen = parts(), []
    hook = p.decoder.projection.register_forward_hook(lambda _m, x, _y: seen.append(x[0].shape[1]))
    out = SpeechOut(p)
    with torch.inference_mode():
        for _ in range(12):
            out.step([1, 2, 3, 4])
    hook.remove()
    assert sum(seen) == 4 * 12 - p.decoder.lookahead and max(seen) == 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_very_short_answer_is_as_long_as_its_codes(count):
    p, out = parts(), SpeechOut(parts())
    with torch.inference_mode():
        sound = torch.cat([out.step([3] * count), out.flush()])
    assert len(sound) == count * p.decoder.frames(1) * p.vocoder.hop_length


def test_a_question_is_answered_once():
    session, _ = answered(QUESTION, [])
    with pytest.raises(ConfigError, match="another session"):
        next(session.answer())
    with pytest.raises(ConfigError, match="another session"):
        session.step(QUESTION)


def test_text_to_speech_gives_codes_in_chunks():
    chunks = list(speak_codes(parts(), "the sky is blue"))
    assert chunks and all(1 <= len(chunk) <= 8 for chunk in chunks)


def test_faults_are_told_in_one_sentence():
    with pytest.raises(AudioError, match="no sound"):
        next(VITAAudioSession(parts()).answer())
    with pytest.raises(ConfigError, match="one of vanilla, balance, boost, turbo"):
        VITAAudioSession(parts(), mode="rocket")
    with pytest.raises(ConfigError, match="reads at most 256"):
        answered(torch.zeros(16_000 * 30), [])
    p = parts()
    with pytest.raises(ConfigError, match="belong together"):
        replace(p, decoder=type(p.decoder)(replace(p.decoder.config, vocab_size=9)))
