"""Whisper at a tiny size: cached decoding equals teacher forcing, batches equal singles, rules hold, loss falls."""

from __future__ import annotations

import itertools

import torch

from vivavoce.asr.whisper import Whisper, WhisperConfig
from vivavoce.asr.whisper_decoding import Decoded, DecodingOptions, FallbackOptions, Rules, decode
from vivavoce.asr.whisper_recognizer import Tape, WhisperRecognizer, join_text, split_window
from vivavoce.asr.whisper_tokens import SpecialIds, language_code
from vivavoce.search.sampling import period


class FakeTokens:
    """A vocabulary without a tokenizer file: ids below 700 are letters."""

    def __init__(self) -> None:
        self.special = SpecialIds(
            end=700, start=701, languages={"en": 702, "de": 703}, translate=704, transcribe=705, start_of_previous=706,
            no_speech=707, no_timestamps=708, first_timestamp=709, n_timestamps=101,
        )  # fmt: skip
        self.blank = (5, 700)
        self.suppressed = (9, 701, 704, 705, 706, 707)
        self.multilingual = True

    def start_sequence(self, language: str | None, task: str, timestamps: bool) -> list[int]:
        return [701, self.special.languages[language or "en"], 705] + ([] if timestamps else [708])

    def decode(self, tokens) -> str:
        return "".join(chr(97 + token % 26) for token in tokens if token < 700)

    def seconds(self, token: int) -> float:
        return (token - self.special.first_timestamp) * 0.02


def model() -> Whisper:
    torch.manual_seed(0)
    made = Whisper(WhisperConfig.tiny()).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.dim() == 1))
    made.decoder.head.weight = made.decoder.embedding.weight
    return made


def test_cached_steps_equal_teacher_forcing() -> None:
    whisper = model()
    memory = whisper.decoder.remember(whisper.encode(torch.randn(2, 20, 200)))
    tokens = torch.randint(0, 700, (2, 9))
    wanted = whisper.decoder(tokens, memory)
    state = whisper.decoder.init_state(2, 9)
    for i in range(9):
        logits, state = whisper.decoder.step(tokens[:, i : i + 1], state, memory, i + 1)
        torch.testing.assert_close(logits, wanted[:, i], rtol=1e-4, atol=1e-4)


def test_windows_decoded_together_equal_each_alone() -> None:
    whisper, tokens = model(), FakeTokens()
    mel = torch.randn(3, 20, 200)
    for options in (DecodingOptions(max_tokens=12), DecodingOptions(max_tokens=12, beams=3)):
        together = decode(whisper.decoder, tokens, whisper.decoder.remember(whisper.encode(mel)), options)
        for i, result in enumerate(together):
            alone = decode(whisper.decoder, tokens, whisper.decoder.remember(whisper.encode(mel[i : i + 1])), options)[
                0
            ]
            assert alone.tokens == result.tokens
            assert abs(alone.avg_logprob - result.avg_logprob) < 1e-4


def test_one_beam_is_greedy() -> None:
    from vivavoce.asr import whisper_decoding

    whisper, tokens = model(), FakeTokens()
    memory = whisper.decoder.remember(whisper.encode(torch.randn(1, 20, 200)))
    greedy = decode(whisper.decoder, tokens, memory, DecodingOptions(max_tokens=10))[0]
    search = whisper_decoding._Beams(1, 1, tokens.special.end, DecodingOptions(beams=1))
    state, span = whisper.decoder.init_state(1, 32), 3
    logits, state = whisper.decoder.step(torch.tensor([[701, 702, 705]]), state, memory, span)
    rules = Rules(tokens, DecodingOptions(max_tokens=10), 2300)
    for _ in range(10):
        search.extend(rules(logits, search.rows))
        if search.complete:
            break
        span += 1
        logits, state = whisper.decoder.step(search.last()[:, None], state, memory, span)
    assert tuple(search.best()[0][0]) == greedy.tokens


def test_rules_pair_timestamps_and_never_run_back() -> None:
    tokens = FakeTokens()
    rules = Rules(tokens, DecodingOptions(), 2300)
    first = tokens.special.first_timestamp

    def allowed(written: list[int]) -> set[int]:
        return set(torch.nonzero(rules(torch.zeros(1, 2300), [written])[0] > float("-inf"))[:, 0].tolist())

    assert allowed([]) == set(range(first, first + 51))  # a time within the first second opens
    after_open = allowed([first + 10])
    assert not after_open & set(range(first, 2300)) and 9 not in after_open
    closing = rules(torch.zeros(1, 2300).index_fill(1, torch.tensor([3]), 9.0), [[first + 10, 3]])[0]
    assert closing[first + 11] > float("-inf") and closing[first + 10] == float("-inf")
    ending = rules(torch.zeros(1, 2300).index_fill(1, torch.tensor([700]), 9.0), [[first, 3, first + 20]])[0]
    assert ending[700] > float("-inf") and ending[first + 20] > float("-inf") and ending[3] == float("-inf")


def test_prompt_and_untimed_windows() -> None:
    whisper, tokens = model(), FakeTokens()
    memory = whisper.decoder.remember(whisper.encode(torch.randn(1, 20, 200)))
    plain = decode(whisper.decoder, tokens, memory, DecodingOptions(max_tokens=6, timestamps=False))[0]
    told = decode(whisper.decoder, tokens, memory, DecodingOptions(max_tokens=6, timestamps=False, prompt=(1, 2, 3)))[0]
    assert all(token < 700 for token in plain.tokens) and abs(plain.avg_logprob - told.avg_logprob) > 1e-3


def test_fallback_distrusts_repetition_and_improbability_but_not_silence() -> None:
    rules = FallbackOptions()
    assert rules.distrusts(Decoded((1,), "la " * 60, -0.1, 0.0))
    assert rules.distrusts(Decoded((1,), "something", -1.5, 0.1))
    assert not rules.distrusts(Decoded((1,), "something", -1.5, 0.9))
    assert not rules.distrusts(Decoded((1,), "an ordinary sentence", -0.3, 0.1))


def test_windows_are_cut_at_pairs() -> None:
    tokens = FakeTokens()
    t = tokens.special.first_timestamp
    pair = Decoded((t, 1, 2, t + 50, t + 50, 3, t + 75, t + 75), "x", 0.0, 0.0)
    window = split_window(pair, tokens, 10.0, 200)
    assert [(s.start, s.end) for s in window.segments] == [(10.0, 11.0), (11.0, 11.5)]
    assert window.advance == 150
    closed = split_window(Decoded((t, 1, t + 50), "x", 0.0, 0.0), tokens, 0.0, 200)
    assert closed.advance == 200 and closed.segments[0].end == 1.0
    assert join_text(window.segments) == "bc d"


def test_tape_forgets_and_pads() -> None:
    tape = Tape(iter([torch.arange(4.0), torch.arange(4.0, 8.0)]))
    assert tape.read(-1, 3).tolist() == [0.0, 0.0, 1.0, 2.0]
    tape.forget(2)
    assert tape.read(2, 6).tolist() == [2.0, 3.0, 4.0, 5.0] and tape.first == 2
    assert tape.read(6, 10).tolist() == [6.0, 7.0, 0.0, 0.0] and tape.ended


def test_published_ids() -> None:
    old, new, english = (SpecialIds.published(size) for size in (51_865, 51_866, 51_864))
    assert (old.translate, old.no_timestamps, old.first_timestamp) == (50358, 50363, 50364)
    assert (new.languages["yue"], new.translate, new.first_timestamp) == (50358, 50359, 50365)
    assert (english.end, english.transcribe, english.first_timestamp) == (50256, 50358, 50363)
    assert language_code("German") == "de"


def test_periods_are_found() -> None:
    assert period([1, 2, 3, 2, 3, 2, 3, 2, 3]) == 2
    assert period([5] * 4) == 1 and period([1, 2, 3, 4, 5, 6]) == 0


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    whisper = Whisper(WhisperConfig.tiny())
    mel, tokens = torch.randn(2, 20, 200), torch.randint(0, 700, (2, 8))
    optimizer = torch.optim.Adam(whisper.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = whisper.loss_terms(mel, tokens, torch.tensor([8, 6]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in whisper.named_parameters()
        if "positions" not in name
    )


class LoudIsSpeech:
    """A detector that takes any sound for speech."""

    class config:
        chunk = 512

    def init_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 1)

    def step(self, wave: torch.Tensor, state: torch.Tensor):
        return (wave.unflatten(1, (-1, 512)).abs().amax(-1) > 0.1).float(), state


def groups(*seconds: float) -> list[tuple[float, torch.Tensor]]:
    """Windows of sound of 1 (positive seconds) and silence (negative) in turns; their starts in seconds."""
    config = WhisperConfig.sized("tiny")
    with torch.device("meta"):
        whisper = Whisper(config)
    heard = WhisperRecognizer(whisper, FakeTokens(), LoudIsSpeech())  # pyright: ignore
    wave = torch.cat([torch.full((int(abs(s) * 16_000),), 1.0 if s > 0 else 0.0) for s in seconds])
    return [(start / 16_000, sound) for start, sound in heard._groups(Tape(wave.split(16_000)))]


def test_speech_before_a_long_silence_is_kept() -> None:
    for silence in (20, 45, 130):
        found = groups(-1, 5, -silence)
        assert len(found) == 1 and abs(found[0][1].sum().item() / 16_000 - 5) < 0.1
    assert [round(start) for start, _ in groups(5, -130, 5)] == [0, 135]


def test_long_speech_is_heard_once_and_whole() -> None:
    found = groups(70)
    heard = sum(sound.sum().item() for _, sound in found) / 16_000
    assert abs(heard - 70) < 0.1 and len(found) == 3
    for (start, sound), (following, _) in itertools.pairwise(found):
        assert abs(start + sound.numel() / 16_000 - following) < 0.1


def test_a_tape_holds_little_of_a_long_recording() -> None:
    tape = Tape(torch.zeros(16_000) for _ in range(600))
    config = WhisperConfig.sized("tiny")
    with torch.device("meta"):
        whisper = Whisper(config)
    heard = WhisperRecognizer(whisper, FakeTokens(), LoudIsSpeech())  # pyright: ignore
    assert list(heard._groups(tape)) == [] and tape._held.numel() < 16_000 * 30
