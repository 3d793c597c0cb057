"""The verb ``talk``: an assistant assembled from parts by name, and driven by a file or a microphone in real time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from vivavoce import vita_audio_verbs
from vivavoce.catalogue import system as system_row
from vivavoce.checkpoints import store
from vivavoce.config import check_seed
from vivavoce.dialogue import Event, Reply
from vivavoce.dialogue.cascade import HEARING_RATE, Cascade, CascadeOptions, CascadeSession, Turn
from vivavoce.errors import AudioError, ConfigError, MissingWeightsError, UnknownNameError
from vivavoce.turns import Listener, TalkResult

BLOCK = 512  # samples: 32 ms, one decision of the voice activity detector
TEXT_MODELS = ("qwen2.5-coder-1.5b-instruct", "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")  # best first
HEADROOM = 1.3  # memory a model needs, in sizes of its file


def available_memory() -> int:
    """Bytes that can be used now."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 8 << 30


def nothing_pulled() -> bool:
    """Whether the parts of an assistant would have to be pulled first."""
    here = store.installed()
    return not any(name in here for name in TEXT_MODELS)


def choose_text_model(memory: int | None = None) -> str:
    """The largest pulled text model that fits into memory."""
    pulled = [name for name in TEXT_MODELS if name in store.installed()]
    if not pulled:
        raise MissingWeightsError("no text model is at hand: run  viva pull starter")
    memory = available_memory() if memory is None else memory
    for name in pulled:
        size = sum(file.stat().st_size for file in store.locate(name).iterdir())
        if size * HEADROOM < memory:
            return name
    return pulled[-1]


def assemble(*, recogniser: str | None = None, text_model: str | None = None, voice: str = "vits-joe",
             llm: str | None = None, llm_model: str | None = None, llm_key: str | None = None,
             system: str | None = None, language: str | None = "en", phonemes: str = "auto",
             endpoint_ms: float = 500.0) -> Cascade:  # fmt: skip
    """An assistant from parts by name; ``llm`` is the address of an OpenAI-compatible text model instead of a local
    one.
    """
    from vivavoce.api import check_language, default_recognizer, load
    from vivavoce.dialogue.remote import RemoteChat
    from vivavoce.lm.chat import SYSTEM, ChatModel, ChatOptions

    if llm is not None and llm_model is None:
        raise UnknownNameError("--llm needs --llm-model NAME: the name the endpoint gives its model")
    hears_name = recogniser or default_recognizer()
    _must_be(hears_name, "whisper", "recogniser")
    _must_be(voice, "vits", "voice")
    if llm is not None and llm_model is not None:
        thinks = RemoteChat(llm, llm_model, key=llm_key, system=system or SYSTEM)
    else:
        name = text_model or choose_text_model()
        _must_be(name, "llama", "text model")
        model, tokenizer = load(name)
        room = min(ChatOptions().capacity, model.config.decoder.context) // 2
        if system is not None and (told := len(tokenizer.encode(system))) > room:
            raise ConfigError(f"the system prompt has {told} tokens, and {name} has room for {room}; shorten --system")
        thinks = ChatModel(model, tokenizer, name=name, options=ChatOptions(system=system or SYSTEM))
    hears = load(hears_name)
    check_language(hears, language, option="--asr")
    speaks = load(voice, parts={"phonemes": phonemes})
    options = CascadeOptions(language=language, endpoint=endpoint_ms / 1000)
    return Cascade(hears, load("silero-vad"), thinks, speaks, options=options, clock=time.perf_counter)


def _must_be(name: str, stem: str, what: str) -> None:
    """UnknownNameError, before anything is loaded, where a part by name is of another system."""
    from vivavoce.api import stem_of

    if stem_of(name) != stem:
        known = ", ".join(system_row(stem).weights)
        raise UnknownNameError(f"{name} is no {what}; use one of {known}")


def converse(cascade: Cascade, blocks: Iterable[Tensor], *, on_reply: Callable[[Reply], None] | None = None,
             real_time: bool = True) -> Iterator[TalkResult]:  # fmt: skip
    """Play blocks of 16 kHz sound into a session at the speed they were spoken; yields each finished question and
    answer.

    After the last block silence follows until the answer is complete. Without ``real_time`` the sound is fed as fast as
    the detector takes it, and times count from the moment the last of it was fed.
    """
    session, clock = cascade.session(), cascade.clock
    session.real_time = real_time
    listener, began = Listener(session.sample_rate), clock()
    fed, done, told = 0, 0, False  # told: the turn was given out, but its sound may still be playing
    try:
        for block in _then_silence(blocks, session):
            fed += block.numel()
            if real_time:
                time.sleep(max(0.0, began + fed / HEARING_RATE - clock()))
            elif session.answering:
                time.sleep(0.002)
            session.played(listener.played(clock()))
            reply = session.step(block)
            if told and any(event.kind == "speech_ended" for event in reply.events):
                listener, told = Listener(session.sample_rate), False  # from here on sound belongs to the next turn
            listener.take(reply, clock())
            if on_reply is not None:
                on_reply(reply)
            for event in reply.events:
                if event.kind == "reply_ended" or (event.kind == "interrupted" and not told):
                    yield _result(cascade, session.turns[done], listener, event)
                    done, told = done + 1, True
                if event.kind == "interrupted":
                    listener, told = Listener(session.sample_rate), False
    finally:
        session.close()


def _then_silence(blocks: Iterable[Tensor], session: CascadeSession) -> Iterator[Tensor]:
    """Cut blocks to the detector's step; go on with silence while an answer is due, or could still be.

    A detector may hold on to the last word for a while, so the silence lasts until the session counts it as an end,
    at the latest when it would close any utterance.
    """
    for block in blocks:
        yield from block.split(BLOCK)
    silence = torch.zeros(BLOCK)
    wait = int((session.options.endpoint + 0.1) * HEARING_RATE / BLOCK)
    longest = int((session.options.longest + 0.1) * HEARING_RATE / BLOCK)
    while wait > 0 or session.answering or (longest > 0 and session.hearing):
        wait, longest = wait - 1, longest - 1
        yield silence


def _result(cascade: Cascade, turn: Turn, listener: Listener, event: Event) -> TalkResult:
    wave = torch.cat(listener.waves) if listener.waves else torch.zeros(0)
    length = wave.numel() / listener.rate
    working = sum(turn.timing.parts.get(name, 0.0) for name in ("recognise", "answer")) / 1000
    return TalkResult(
        heard=turn.heard.strip(), answer=event.text if event.kind == "interrupted" else turn.answer.strip(), wave=wave,
        sample_rate=listener.rate, first_sound_ms=turn.timing.first_sound, parts_ms=dict(turn.timing.parts),
        real_time_factor=working / length if length and event.kind == "reply_ended" else None,
        underruns=listener.underruns, models=cascade.models,
    )  # fmt: skip


def check_endpoint(milliseconds: float) -> None:
    """ConfigError unless a pause of this length can tell an end."""
    if not 100 <= milliseconds <= 5000:
        raise ConfigError(f"the endpoint must lie between 100 and 5000 milliseconds, not {milliseconds:g}")


def question_file() -> Path:
    """The spoken question that ships with the package."""
    return Path(__file__).with_name("assets") / "question.flac"


def talk(source: str | Path | Tensor | None = None, sample_rate: int | None = None, *, cascade: Cascade | None = None,
         recogniser: str | None = None, text_model: str | None = None, voice: str = "vits-joe", phonemes: str = "auto",
         llm: str | None = None, llm_model: str | None = None, llm_key: str | None = None, system: str | None = None,
         language: str | None = "en", endpoint_ms: float = 500.0, seed: int | None = None, real_time: bool = True,
         threads: int | None = None, model: str | None = None, mode: str = "boost", verify: str | float | None = None,
         release: str = "verified", temperature: float = 0.0) -> TalkResult:  # fmt: skip
    """Answer a spoken question: a sound file, a wave with ``sample_rate``, or (None) the question that ships with us.

    Gives the first question's answer; :func:`converse` goes on through a whole conversation. ``cascade`` re-uses an
    assistant that :func:`assemble` made, otherwise the parts are chosen by name as in ``viva talk``. ``endpoint_ms`` of
    silence end a question; a ``seed`` makes the voice repeatable. Nothing understood gives an empty answer. ``model``
    names one speech model in place of the parts; ``mode``, ``verify``, ``release`` and ``temperature`` say how it
    drafts, see :class:`~vivavoce.vita_audio_verbs.Manner`.
    """
    from vivavoce.asr.whisper_tokens import language_code
    from vivavoce.audio.io import read_blocks
    from vivavoce.audio.resample import resample
    from vivavoce.inspection import set_threads

    check_endpoint(endpoint_ms)
    check_seed(seed)
    set_threads(threads)
    if isinstance(source, Tensor):
        if sample_rate is None:
            raise ConfigError("a wave needs its sample_rate: talk(wave, 16000)")
        blocks: Iterable[Tensor] = [resample(source.float().reshape(-1), sample_rate, HEARING_RATE)]
    else:
        blocks = read_blocks(question_file() if source is None else source, HEARING_RATE)
    if model is not None:
        named = {"recogniser": recogniser, "text_model": text_model, "llm": llm, "llm_model": llm_model,
                 "llm_key": llm_key, "system": system, "cascade": cascade,
                 "voice": None if voice == "vits-joe" else voice,
                 "phonemes": None if phonemes == "auto" else phonemes}  # fmt: skip
        vita_audio_verbs.refuse_parts(
            [name for name, value in named.items() if value is not None], language_code(language) if language else None
        )
        return vita_audio_verbs.converse(
            vita_audio_verbs.open_speech_model(model), blocks, mode=mode, verify=verify, release=release,
            temperature=temperature, seed=seed, real_time=real_time,
        )  # fmt: skip
    if verify is not None or release != "verified" or temperature or mode != "boost":
        raise ConfigError("mode, verify, release and temperature are for one speech model; name it too: model=...")
    ready = cascade or assemble(
        recogniser=recogniser, text_model=text_model, voice=voice, phonemes=phonemes, llm=llm, llm_model=llm_model,
        llm_key=llm_key, system=system, language=language_code(language) if language else None, endpoint_ms=endpoint_ms,
    )  # fmt: skip
    ready.warm()
    if seed is not None:
        torch.manual_seed(seed)
    for result in converse(ready, blocks, real_time=real_time):
        return result
    raise AudioError("no speech was found in the sound; record it louder, or nearer to the microphone")
