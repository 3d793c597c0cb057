"""Conversations of VITA-Audio: turns are one text, what was not heard leaves it, forks and files go on alike."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.dialogue import vita_parts

from vivavoce.dialogue import Reply
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_conversation import GrowingText, VITAAudioConversation
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_prompts import CLIP, Message, answer_prompt
from vivavoce.dialogue.vita_audio_session import VITAAudioParts, VITAAudioSession
from vivavoce.dialogue.vita_audio_writing import MODES
from vivavoce.errors import AudioError, CheckpointError, ConfigError
from vivavoce.search.sampling import SamplingOptions

QUESTIONS = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 for n in (12_000, 9_000, 11_000)]


@cache
def parts(modules: int = 10, reads: int | None = 4) -> VITAAudioParts:
    """Parts whose model heeds what it has read long before."""
    made = vita_parts.parts(modules, reads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = VITAAudio(made.model.config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    return replace(made, model=model.eval().requires_grad_(False))


def ask(conversation: VITAAudioConversation, wave: torch.Tensor, cuts: tuple[int, ...] = ()) -> list[Reply]:
    for piece in torch.tensor_split(wave, cuts):
        conversation.listen(piece)
    return list(conversation.answer())


def sound(replies: list[Reply]) -> torch.Tensor:
    pieces = [reply.wave_piece for reply in replies if reply.wave_piece is not None]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def talked(turns: int = 2, modules: int = 10, reads: int | None = 4, **others) -> VITAAudioConversation:
    conversation = VITAAudioConversation(parts(modules, reads), **{"longest": 30, **others})
    for wave in QUESTIONS[:turns]:
        ask(conversation, wave)
    return conversation


def codes_of(wave: torch.Tensor) -> list[int]:
    return parts().tokenizer(wave[None]).values[0, 0].tolist()


# --------------------------------------------------------------------------------------------------- turns are one text
@pytest.mark.parametrize(
    ("mode", "modules", "reads"),
    [*((mode, 10, 4) for mode in MODES), ("boost", 10, None), ("balance", 1, 4), ("vanilla", 0, None)],
)
def test_turns_are_one_uncached_chain(mode: str, modules: int, reads: int | None) -> None:
    """Each token of both answers is what its writer says at that place of the whole text, read at once."""
    p = parts(modules, reads)
    conversation = VITAAudioConversation(p, mode=mode, longest=30)
    spans = []
    for wave in QUESTIONS[:2]:
        ask(conversation, wave, (5_000, 5_100))
        assert conversation.turn is not None and conversation.text.answer_from is not None
        spans.append((conversation.text.answer_from, conversation.turn.result.writers))
    ids = torch.tensor([conversation.text.tokens])
    start = 0 if reads is None else max(0, spans[0][0] - reads)
    with torch.inference_mode():
        states = p.model(ids, starts=None if reads is None else torch.tensor([start]))
    by_module = 0
    for begin, writers in spans:
        grammar = Grammar(p.tokens, p.model.config.vocab_size, speaking=True, interleave=p.interleave)
        for at, writer in enumerate(writers, begin):
            hidden = states[0][0, at - 1] if writer is None else states[writer + 1][0, at - 1 - start]
            place, by_module = grammar.here, by_module + (writer is not None)
            with torch.inference_mode():
                wanted = place.rows.start + int(place.masked(p.model.logits(hidden, place.rows)).argmax())
            assert int(ids[0, at]) == wanted, (at, writer)
            grammar.take(wanted)
    assert (by_module > 0) == (modules > 0 and mode != "vanilla")


def test_the_text_is_the_published_template_with_all_that_was_said() -> None:
    p, conversation = parts(), talked()
    tokens, begin = p.tokens, len(p.tokens.prompt(answer_prompt(), [codes_of(QUESTIONS[0])]))
    whole = conversation.text.tokens
    second = conversation.text.answer_from
    assert second is not None
    asked = tokens.prompt([Message("user", f"\n{CLIP}")], [codes_of(QUESTIONS[1])])
    assert whole[:begin] == tokens.prompt(answer_prompt(), [codes_of(QUESTIONS[0])])
    assert whole[second - len(asked) : second] == asked
    first = whole[begin : second - len(asked)]
    assert first[-2:] == tokens.close() and sum(tokens.code(token) is not None for token in first) > 4
    alone = VITAAudioSession(p, longest=30)
    alone.step(QUESTIONS[0])
    list(alone.answer())
    assert [code for token in first if (code := tokens.code(token)) is not None] == alone.result.codes


def test_an_answer_that_ended_is_not_ended_twice() -> None:
    conversation, tokens = talked(1), parts().tokens
    begin = conversation.text.answer_from or 0
    conversation.text.add([tokens.end])
    length = len(conversation.text.tokens)
    conversation.listen(QUESTIONS[1])
    assert conversation.text.tokens[length - 1 : length + 2] == [*tokens.close(), tokens.start]
    assert conversation.text.tokens[begin : length - 1].count(tokens.end) == 0


def test_an_earlier_turn_changes_a_later_one() -> None:
    other = VITAAudioConversation(parts(), longest=30)
    ask(other, QUESTIONS[2])
    ask(other, QUESTIONS[1])
    after = [c.text.tokens[c.text.answer_from or 0 :] for c in (talked(), other)]
    assert after[0] != after[1]


def test_events_count_from_the_beginning() -> None:
    conversation = VITAAudioConversation(parts(), longest=30)
    times = [[event.at for reply in ask(conversation, wave) for event in reply.events] for wave in QUESTIONS[:2]]
    assert times == [[0.75, 0.75], [21_000 / 16_000] * 2]


# ------------------------------------------------------------------------------------------------------------- barge-in
@pytest.mark.parametrize(
    ("share", "mode", "modules", "reads"),
    [(0.0, "boost", 10, 4), (0.01, "turbo", 10, 4), (0.4, "boost", 10, 4), (0.8, "boost", 10, 4),
     (0.0, "boost", 10, None), (0.4, "turbo", 10, None), (0.5, "balance", 1, 4), (0.4, "vanilla", 0, None)],
)  # fmt: skip
def test_what_was_not_heard_leaves_no_trace(share: float, mode: str, modules: int, reads: int | None) -> None:
    """Interrupt and ask again: as a conversation in which the rest was never written."""
    p = parts(modules, reads)
    cut = talked(1, modules, reads, mode=mode)
    begin, whole = cut.text.answer_from, list(cut.text.tokens)
    assert begin is not None
    cut.played(share * cut.given / p.sample_rate)
    (event,) = cut.interrupt().events
    per_code = p.decoder.frames(1) * p.vocoder.hop_length
    heard = -int(-share * cut.given // per_code)  # those begun count
    kept = cut.text.tokens[begin:]
    assert sum(p.tokens.code(token) is not None for token in kept) == heard and event.kind == "interrupted"
    broken = [p.tokens.end_audio] if heard else []
    assert kept[-2 - len(broken) :] == [*broken, *p.tokens.close()]
    assert kept[: -2 - len(broken)] == whole[begin : begin + len(kept) - 2 - len(broken)]

    never = written_by_hand(p, mode, whole[:begin], kept)
    said = [sound(ask(conversation, QUESTIONS[1])) for conversation in (cut, never)]
    assert cut.text.tokens == never.text.tokens and torch.equal(*said)
    assert cut.turn.result.writers == never.turn.result.writers


def written_by_hand(p: VITAAudioParts, mode: str, prompt: list[int], answer: list[int]) -> VITAAudioConversation:
    """A conversation whose first answer, turn closed, was never written by a model."""
    made = VITAAudioConversation(p, mode=mode, longest=30)
    made.listen(QUESTIONS[0])
    with torch.inference_mode():
        made.text.add(prompt[len(made.text.tokens) :])
        made.text.begin_answer()
        made.text.add(answer)
    made.turn.over, made.text.answer_from = True, None
    return made


@pytest.mark.parametrize("share", [0.5, None])
def test_an_interrupted_answer_stops(share: float | None) -> None:
    """While it is being written; unless something else was said, all that was given counts as heard."""
    conversation = VITAAudioConversation(parts(), longest=60)
    conversation.listen(QUESTIONS[0])
    pieces, begin, replies = 0, 0, conversation.answer()
    for reply in replies:
        begin = conversation.text.answer_from or 0
        pieces += reply.wave_piece is not None and len(reply.wave_piece) > 0
        if pieces == 2:
            if share is not None:
                conversation.played(share * conversation.given / conversation.sample_rate)
            assert conversation.interrupt().events[0].kind == "interrupted"
    assert pieces == 2 and next(replies, None) is None
    whole = list(conversation.text.tokens)
    assert conversation.interrupt() == Reply() and conversation.text.tokens == whole
    never = written_by_hand(parts(), "boost", whole[:begin], whole[begin:])
    never.settings = conversation.settings
    said = [sound(ask(one, QUESTIONS[1])) for one in (conversation, never)]
    assert conversation.text.tokens == never.text.tokens and torch.equal(*said) and len(said[0])


def test_text_that_stays_is_what_precedes_the_last_sound() -> None:
    conversation = talked(1)
    begin, tokens = conversation.text.answer_from or 0, parts().tokens
    conversation.played(0.3 * conversation.given / conversation.sample_rate)
    (event,) = conversation.interrupt().events
    words = [token for token in conversation.text.tokens[begin:] if token in tokens.text_ids][:-1]  # a line break
    assert words and event.text == tokens.tokenizer.decode(words).strip()


def test_an_answer_heard_to_its_end_stays_whole() -> None:
    conversation = talked(1)
    whole = list(conversation.text.tokens)
    assert conversation.interrupt() == Reply(), "who never says what was played has heard all"
    conversation.played(conversation.given / conversation.sample_rate)
    assert conversation.interrupt() == Reply() and conversation.text.tokens == whole


# ------------------------------------------------------------------------------------------------------ forks and files
def test_forks_go_their_own_ways() -> None:
    """Each as a conversation that was led to there by itself, drawing the same numbers."""
    options = SamplingOptions(temperature=1.0, top_k=20)

    def led(turns: int) -> VITAAudioConversation:
        return talked(turns, sampling=options, generator=torch.Generator().manual_seed(3))

    one = led(1)
    one.listen(QUESTIONS[1][:6_000])
    two = one.fork()
    one.listen(QUESTIONS[1][6_000:])
    two.listen(QUESTIONS[2][6_000:])
    replies = [one.answer(), two.answer()]
    sounds = [list[Reply](), list[Reply]()]
    while replies[0] is not None or replies[1] is not None:  # in turns
        for number, replying in enumerate(replies):
            reply = None if replying is None else next(replying, None)
            if reply is None:
                replies[number] = None
            else:
                sounds[number].append(reply)
    for conversation, rest, said in ((one, QUESTIONS[1][6_000:], sounds[0]), (two, QUESTIONS[2][6_000:], sounds[1])):
        alone = led(1)
        wanted = ask(alone, torch.cat([QUESTIONS[1][:6_000], rest]), (6_000,))
        assert alone.text.tokens == conversation.text.tokens and torch.equal(sound(said), sound(wanted))
    assert one.text.tokens != two.text.tokens


@pytest.mark.parametrize(("modules", "reads"), [(10, 4), (1, None), (0, None)])
def test_a_file_goes_on_where_it_was_saved(tmp_path: Path, modules: int, reads: int | None) -> None:
    p, file = parts(modules, reads), tmp_path / "talk.safetensors"
    conversation = VITAAudioConversation(
        p, longest=30, sampling=SamplingOptions(temperature=0.8), generator=torch.Generator().manual_seed(1)
    )
    conversation.save(file)
    conversation = VITAAudioConversation.restore(p, file)
    ask(conversation, QUESTIONS[0])
    conversation.played(0.1)
    conversation.save(file)
    again = VITAAudioConversation.restore(p, file)
    for one in (conversation, again):
        one.interrupt()
        one.listen(QUESTIONS[1][:8_000])
    assert conversation.text.tokens == again.text.tokens
    again.save(file)
    third = VITAAudioConversation.restore(p, file)
    assert third.heard == 20_000 and third.listening
    said = [sound(ask(one, QUESTIONS[1][8_000:])) for one in (conversation, third)]
    assert conversation.text.tokens == third.text.tokens and len(said[0]) and torch.equal(*said)
    assert [path.name for path in tmp_path.iterdir()] == ["talk.safetensors"]


def test_a_file_holds_only_what_is_filled(tmp_path: Path) -> None:
    sizes = []
    for turns in (1, 2):
        file = tmp_path / "talk.safetensors"
        conversation = talked(turns)
        conversation.save(file)
        with safe_open(file, framework="pt") as stored:
            key = stored.get_tensor("text.backbone.0.key")
        assert key.shape[2] == conversation.text.read
        sizes.append(file.stat().st_size)
    assert sizes[0] < sizes[1]


def stored(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(file, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, json.loads(handle.metadata()["conversation"])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    file, bad = tmp_path / "talk.safetensors", tmp_path / "bad.safetensors"
    conversation = talked(1)
    conversation.listen(QUESTIONS[1][:8_000])
    conversation.save(file)
    whole = file.read_bytes()
    one_bit = bytearray(whole)
    one_bit[-200] ^= 1
    for damaged in (b"", b"nonsense", whole[:1000], whole[:-100], bytes(one_bit)):
        bad.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no conversation"):
            VITAAudioConversation.restore(parts(), bad)
    with pytest.raises(CheckpointError, match="holds no conversation"):
        VITAAudioConversation.restore(parts(), tmp_path / "nowhere")
    tensors, about = stored(file)
    save_file({"x": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match="holds no conversation"):
        VITAAudioConversation.restore(parts(), bad)
    wrong = [({name: None}, {}) for name in tensors]
    wrong += [({"text.tokens": tensors["text.tokens"] + 10_000}, {}), ({"other": torch.zeros(1)}, {}),
              ({"text.backbone.0.key": tensors["text.backbone.0.key"][:, :, :-1].contiguous()}, {}),
              ({"hearing.wave": torch.zeros(1, 10**6)}, {}), ({"hearing.position": torch.tensor([10**9])}, {}),
              ({"hearing.conv1": torch.zeros(1, 1, 1)}, {}), ({"probe": tensors["probe"] + 1.0}, {})]  # fmt: skip
    wrong += [({}, {name: "x"}) for name in about] + [({}, {"answer_from": 10**6, "full": False})]
    for changes, said in wrong:
        changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
        save_file(changed, bad, {"conversation": json.dumps({**about, **said})})
        with pytest.raises(CheckpointError, match=str(bad)):
            VITAAudioConversation.restore(parts(), bad)
            pytest.fail(f"{list(changes)} {said}")


def test_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "talk.safetensors"
    talked(1).save(file)
    with pytest.raises(CheckpointError, match="another model"):
        VITAAudioConversation.restore(parts(1, 4), file)
    p = parts()
    model = type(p.model)(p.model.config).eval()
    model.load_state_dict(
        {k: v * (1.3 if k == "mctp.2.project.weight" else 1) for k, v in p.model.state_dict().items()}
    )
    with pytest.raises(CheckpointError, match="gone on with"):
        VITAAudioConversation.restore(replace(p, model=model), file)


def test_a_failed_save_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, conversation = tmp_path / "talk.safetensors", talked(1)
    conversation.save(file)
    before = file.read_bytes()

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(CheckpointError, match=r"cannot be written .*no space"):
        conversation.save(file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["talk.safetensors"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        conversation.save(tmp_path / "nowhere" / "talk.safetensors")


# ------------------------------------------------------------------------------------------------------ limits, faults
def test_conversations_beside_do_not_touch() -> None:
    alone = [talked(), talked(2, mode="turbo")]
    beside = [VITAAudioConversation(parts(), longest=30), VITAAudioConversation(parts(), longest=30, mode="turbo")]
    for wave in QUESTIONS[:2]:
        for conversation in beside:
            conversation.listen(wave)
        turns = [conversation.answer() for conversation in beside]
        while turns:
            turns = [turn for turn in turns if next(turn, None) is not None]
    assert [c.text.tokens for c in beside] == [c.text.tokens for c in alone]


def test_a_full_window_is_told_and_nothing_is_forgotten(tmp_path: Path) -> None:
    conversation = VITAAudioConversation(parts(), longest=30)
    with pytest.raises(ConfigError, match="fills the 256 tokens that the model reads"):
        for _ in range(20):
            ask(conversation, QUESTIONS[0])
    length, file = len(conversation.text.tokens), tmp_path / "full.safetensors"
    conversation.save(file)
    for one in (conversation, conversation.fork(), VITAAudioConversation.restore(parts(), file)):
        with pytest.raises(ConfigError, match="begin another conversation"):
            ask(one, QUESTIONS[0])
        assert len(one.text.tokens) == length <= 256


def test_once_something_did_not_fit_nothing_does() -> None:
    """Else the end of a question would be answered without its middle."""
    text = GrowingText.begin(parts().model, 10)
    for count in (11, 1):
        with pytest.raises(ConfigError, match="fills the 10 tokens"):
            text.add([1] * count)


def test_an_answer_that_the_window_cuts_is_told_and_can_be_interrupted() -> None:
    p = parts()
    prompt = len(p.tokens.prompt(answer_prompt(), [codes_of(QUESTIONS[0])]))
    conversation = VITAAudioConversation(p, capacity=prompt + 30)
    conversation.listen(QUESTIONS[0])
    said = list[Reply]()
    with pytest.raises(ConfigError, match="this answer ends early"):
        for reply in conversation.answer():
            said.append(reply)
    assert len(sound(said)) and len(conversation.text.tokens) == prompt + 30
    conversation.played(0.0)
    assert conversation.interrupt().events and len(conversation.text.tokens) == prompt + 2
    tight = VITAAudioConversation(p, capacity=prompt)
    tight.listen(QUESTIONS[0])
    with pytest.raises(ConfigError, match=r"no room for an answer.*another conversation"):
        next(tight.answer())


def test_faults_are_told_in_one_sentence(tmp_path: Path) -> None:
    conversation = VITAAudioConversation(parts(), longest=30)
    with pytest.raises(AudioError, match="no sound to answer"):
        conversation.answer()
    assert conversation.interrupt() == Reply()
    conversation.listen(QUESTIONS[0])
    replies = conversation.answer()
    next(replies)
    for forbidden in (lambda: conversation.listen(QUESTIONS[1]), conversation.answer, conversation.fork,
                      lambda: conversation.save(tmp_path / "x")):  # fmt: skip
        with pytest.raises(ConfigError, match="take it to its end, or interrupt it first"):
            forbidden()
    list(replies)
    with pytest.raises(AudioError, match="no sound to answer"):
        conversation.answer()
    with pytest.raises(ConfigError, match="one of vanilla, balance, boost, turbo"):
        VITAAudioConversation(parts(), mode="rocket")
    with pytest.raises(ConfigError, match="1 token or more"):
        VITAAudioConversation(parts(), longest=0)
    for wave in (torch.full((400,), float("nan")), torch.zeros(1, 400), [0.0]):
        with pytest.raises(AudioError, match="finite numbers"):
            conversation.listen(wave)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="a folder that is there"):
        conversation.save(tmp_path / "nowhere" / "x")
    with pytest.raises(CheckpointError, match="a folder that is there"):
        conversation.save(str(tmp_path))
