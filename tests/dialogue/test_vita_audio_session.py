"""Sessions of VITA-Audio: any cutting of the question gives the same answer, sound comes early and is decoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialogue.vita_parts import parts

from vivavoce.codecs.glm4_decoder import time_noise
from vivavoce.dialogue.vita_audio_cycles import write_by_grammar
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_policies import Choice, Exact, Sampled, Scores, Threshold
from vivavoce.dialogue.vita_audio_prompts import answer_prompt
from vivavoce.dialogue.vita_audio_session import Mouth, SpeechOut, VITAAudioSession, speak_codes
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import AudioError, ConfigError
from vivavoce.search.sampling import SamplingOptions
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


# ------------------------------------------------------------------------------------------------------ verified drafts
class Clock:
    """Time that stands still unless somebody moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Moody(Exact):
    """Greedy, but of so many drafts all but one stand, whatever the backbone says: random weights hardly ever agree."""

    def __init__(self, many: int = 3):
        self.judged, self.many = 0, many

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        self.judged += 1
        return draft.token if self.judged % self.many else super().stands(draft, scores, generator)


@dataclass
class Player:
    """What arrives at the far side: ``wave`` as it stands, ``void`` how many samples each event took back."""

    wave: torch.Tensor
    void: list[int]
    session: VITAAudioSession
    text: str

    @classmethod
    def hear(cls, step: Callable[[VITAAudioSession, int], None] = lambda session, given: None, **options) -> Player:
        """Ask, and take the answer; ``step`` is told after each reply how many samples were given and not void."""
        session = VITAAudioSession(parts(), longest=70, **options)
        session.step(QUESTION)
        found = cls(torch.zeros(0), [], session, "")
        for reply in session.answer():
            for event in reply.events:
                if event.kind == "taken_back":
                    assert 0 < event.samples <= len(found.wave) and reply.wave_piece is None
                    found.void.append(event.samples)
                    found.wave = found.wave[: -event.samples]
            if reply.wave_piece is not None:
                found.wave = torch.cat([found.wave, reply.wave_piece])
            found.text += reply.text_piece
            step(session, len(found.wave))
        return found


POLICIES = {
    "exact": Exact,
    "moody": Moody,
    "lenient": lambda: Moody(7),
    "sampled": lambda: Sampled(SamplingOptions(temperature=1.0)),
    "threshold": lambda: Threshold(0.9),
}


@pytest.mark.parametrize("mode", ["balance", "turbo"])
@pytest.mark.parametrize("policy", POLICIES)
def test_early_sound_that_nobody_played_becomes_the_verified_sound(policy: str, mode: str):
    draws = [torch.Generator().manual_seed(4) for _ in range(2)]
    late = Player.hear(mode=mode, verify=POLICIES[policy](), generator=draws[0], clock=Clock())
    early = Player.hear(mode=mode, verify=POLICIES[policy](), generator=draws[1], clock=Clock(), release="early")
    one, other = late.session.result, early.session.result
    assert not late.void and other.regretted == one.regretted == 0
    assert other.codes == one.codes and other.text == one.text and other.writers == one.writers
    assert other.acceptance == one.acceptance and one.acceptance is not None and one.acceptance.drafted
    assert early.text == late.text == one.text
    assert early.wave.shape == late.wave.shape and len(late.wave)
    torch.testing.assert_close(early.wave, late.wave, rtol=0, atol=1e-5)
    if policy in ("moody", "lenient"):
        assert early.void and one.acceptance.accepted[0], "both happen"


def test_exact_verified_drafts_give_the_answer_of_the_backbone_alone():
    alone, _ = answered(QUESTION, [], "vanilla", longest=70)
    found = Player.hear(mode="turbo", verify=Exact())
    assert found.session.result.codes == alone.result.codes and found.session.result.text == alone.result.text
    assert alone.result.acceptance is None


def test_the_first_early_sound_needs_one_pass_less():
    passes = [
        Player.hear(verify=Moody(100), release=release).session.result.passes_before_sound
        for release in ("verified", "early")
    ]
    assert passes == [2, 1]


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_what_was_played_cannot_be_taken_back(share: float):
    """The listener says after each reply how much it has heard; that stays, and behind it all is as verified."""
    verified, heard = Player.hear(verify=Moody(), clock=Clock()).wave, list[int]()
    rate = parts().sample_rate

    def plays(session: VITAAudioSession, given: int) -> None:
        heard.append(max([int(share * given), *heard[-1:]]))
        session.played(heard[-1] / rate)

    early = Player.hear(plays, verify=Moody(), release="early", clock=Clock())
    result = early.session.result
    assert early.session.result.codes == Player.hear(verify=Moody()).session.result.codes
    assert len(early.wave) >= len(verified)
    wrong = ((early.wave[: len(verified)] - verified).abs() > 1e-5).nonzero().flatten()
    if share == 0.3:
        assert early.void
    else:
        assert len(wrong)
    assert len(wrong) <= result.regretted < heard[-1]
    if share == 1.0:
        assert not early.void, "all of it was heard"


def test_a_listener_that_says_nothing_plays_in_real_time():
    """Each reply takes as long as the fifth part of a chunk lasts; or longer than all of the answer."""
    clock, rate = Clock(), parts().sample_rate
    chunk = 8 * parts().decoder.frames(1) * parts().vocoder.hop_length

    def passes(session: VITAAudioSession, given: int) -> None:
        clock.now += 0.2 * chunk / rate

    slow = Player.hear(passes, verify=Moody(), release="early", clock=clock)
    still = Player.hear(verify=Moody(), release="early", clock=Clock())
    assert slow.session.result.codes == still.session.result.codes
    assert slow.session.result.regretted > 0 and sum(slow.void) < sum(still.void)
    clock = Clock()

    def jumps(session: VITAAudioSession, given: int) -> None:
        clock.now += 100.0

    heard_all = Player.hear(jumps, verify=Moody(), release="early", clock=clock)
    assert not heard_all.void and heard_all.session.result.regretted > slow.session.result.regretted


def test_what_was_heard_in_vain_is_counted_once():
    """Two take-backs over the same stretch, of which all was heard."""
    mouth = Mouth(parts(), Clock())
    with torch.inference_mode():
        mouth.waiting = [1, 2, 3, 4]
        mouth.say(certain=True)
        mouth.waiting = [5, 6, 7, 8, 9, 10]
        mouth.say(certain=False)
        mouth.played(1e9)
        assert mouth.heard == mouth.given and mouth.take_back(5) == 0
        once = mouth.regretted
        mouth.waiting = [11, 12]
        assert once and not len(mouth.say(certain=False)), "it lies before what was heard"
        assert mouth.take_back(1) == 0 and mouth.regretted == once
        mouth.agree()
        mouth.waiting = [13] * 8
        assert len(mouth.say(certain=True))
        rest = mouth.finish()
        assert mouth.given == (6 + 8) * parts().decoder.frames(1) * parts().vocoder.hop_length and len(rest)


def test_codes_that_have_no_sound_yet_are_taken_back_in_silence():
    mouth = Mouth(parts(), Clock())
    with torch.inference_mode():
        mouth.waiting = [1, 2, 3]
        assert mouth.take_back(2) == 0 and mouth.waiting == [1] and mouth.out.state.codes == 0


@pytest.mark.parametrize("said", [" word\n", "\ufffd", "\nhalf \ufffd"])
def test_pieces_of_text_make_the_answer_with_nothing_loose_at_its_ends(said: str, monkeypatch: pytest.MonkeyPatch):
    """Space at the end waits for a word behind it, bytes of half a character for its other half."""
    monkeypatch.setattr(parts().tokens.tokenizer, "decode", lambda ids: said * len(ids))
    found = Player.hear(verify=Sampled(SamplingOptions(temperature=1.0)), generator=torch.Generator().manual_seed(4))
    whole = said * sum(token in parts().tokens.text_ids for token in found.session.writer.tokens[-70:])
    assert found.text == found.session.result.text == whole.rstrip("\ufffd").strip()
    assert len(whole) > len(said)


def test_ways_of_release_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'early'"):
        VITAAudioSession(parts(), verify=Exact(), release="erly")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="must be verified"):
        VITAAudioSession(parts(), release="early")
    with pytest.raises(ConfigError, match="leave sampling out"):
        VITAAudioSession(parts(), verify=Exact(), sampling=SamplingOptions())
