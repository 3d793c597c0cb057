"""``viva talk``: a spoken question in, a spoken answer out, and where the time went."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivavoce.cli.options import AsJson, Seed, Threads, Verbose, note, print_json
from vivavoce.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from vivavoce.audio.loudspeaker import Loudspeaker
    from vivavoce.dialogue import Reply
    from vivavoce.talking import TalkResult
    from vivavoce.vita_audio_verbs import Manner

PARTS = {
    "recogniser": "--asr",
    "text_model": "--text-model",
    "voice": "--voice",
    "phonemes": "--phonemes",
    "llm": "--llm",
    "llm_model": "--llm-model",
    "llm_key": "--llm-key",
    "system": "--system",
}  # options about the parts of an assistant, which one speech model has not


def talk(
    context: typer.Context,
    file: Annotated[
        str | None, typer.Argument(help="A sound file, - for wav on standard input; left out: our own question.")
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Listen to the microphone until Ctrl-C.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="Where the answer's sound goes.")] = "answer.wav",
    play: Annotated[bool, typer.Option("--play", help="Play the answer while it is made (always with --mic).")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="One speech model in place of the parts: nano-talk, or a folder."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="How a speech model drafts: vanilla, balance, boost (default) or turbo."),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option("--verify", help="Check its drafts: exact, sampled, or a share of probability such as 0.3."),
    ] = None,
    release: Annotated[
        str | None,
        typer.Option("--release", help="When drafts are heard: verified (default), or early: before they are checked."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Let a speech model draw its tokens; 0: the likeliest.")
    ] = None,
    recogniser: Annotated[
        str | None, typer.Option("--asr", envvar="VIVA_ASR", help="What hears: a name or path.")
    ] = None,
    text_model: Annotated[
        str | None,
        typer.Option("--text-model", envvar="VIVA_TEXT_MODEL", help="What thinks; default: the largest pulled."),
    ] = None,
    voice: Annotated[
        str, typer.Option("--voice", envvar="VIVA_VOICE", help="What speaks: a name or path.")
    ] = "vits-joe",
    phonemes: Annotated[str, typer.Option("--phonemes", help="auto, espeak or lexicon.")] = "auto",
    llm: Annotated[
        str | None, typer.Option("--llm", envvar="VIVA_LLM", help="Address of an OpenAI-compatible text model.")
    ] = None,
    llm_model: Annotated[
        str | None, typer.Option("--llm-model", envvar="VIVA_LLM_MODEL", help="Its model's name.")
    ] = None,
    llm_key: Annotated[
        str | None, typer.Option("--llm-key", envvar="VIVA_LLM_KEY", help="Its key, if it needs one.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the assistant is told about itself.")] = None,
    language: Annotated[str, typer.Option("--language", "-l", envvar="VIVA_LANGUAGE", help="Spoken language.")] = "en",
    endpoint: Annotated[float, typer.Option("--endpoint", help="Milliseconds of silence that end a question.")] = 500.0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Read the file as fast as possible instead of as it was spoken.")
    ] = False,
    seed: Seed = None,
    as_json: AsJson = False,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Answer a spoken question by voice, offline.

    A file is heard as a microphone would hear it: at the speed it was spoken. What was understood, the answer and the
    time to its first sound (counted from the last sample of speech, the wait for the end included) appear as they come.

    viva talk

    viva talk question.wav --json

    viva talk --mic

    viva talk question.wav --model nano-talk --mode turbo    (one model hears, thinks and speaks; a small closed domain)

    viva talk question.wav --model nano-talk --verify exact --release early    (drafts are heard, then checked)

    viva talk question.wav --llm http://localhost:11434/v1 --llm-model llama3.2
    """
    if mic and file is not None:
        raise ConfigError("--mic and a file exclude each other; leave one out")
    from vivavoce.catalogue import is_shipped
    from vivavoce.talking import (
        HEARING_RATE,
        assemble,
        check_endpoint,
        converse,
        nothing_pulled,
        question_file,
    )

    check_endpoint(endpoint)
    import torch

    from vivavoce.asr.whisper_tokens import language_code
    from vivavoce.audio import io
    from vivavoce.audio.loudspeaker import Loudspeaker
    from vivavoce.inspection import set_threads

    io.check_format(output)
    if not mic:
        io.check_target(output)
    code = language_code(language)
    set_threads(threads)
    source = None if mic else str(question_file()) if file is None else file
    if source not in (None, "-") and Path(output).absolute() == Path(str(source)).absolute():
        raise ConfigError(f"the answer would take the place of the question {source}; name another file with -o")
    if source not in (None, "-"):
        io.info(str(source))  # a bad file is told before models are loaded
    named = [option for name, option in PARTS.items() if _on_the_line(context, name)]
    foreign = code if _on_the_line(context, "language") else "en"
    plain = llm is None and not named and foreign == "en"  # nothing is asked for that the model that ships has not
    if model is None and plain and nothing_pulled() and is_shipped("nano-talk"):
        model = "nano-talk"
        print(
            "viva: no models are pulled, so the small one that ships answers: run  viva pull starter", file=sys.stderr
        )
    if model is not None:
        from vivavoce.vita_audio_verbs import Manner, refuse_parts

        refuse_parts(named, foreign)
        manner = Manner("boost" if mode is None else mode, verify, release or "verified", temperature or 0.0, seed)
        _talk_directly(model, manner, source, output, play or mic, endpoint, not fast, as_json)
        return
    for option, value in (("mode", mode), ("verify", verify), ("release", release), ("temperature", temperature)):
        if value is not None:
            raise ConfigError(
                f"--{option} is for one speech model; name it too:  viva talk --model nano-talk --{option} {value}"
            )
    note("loading ...")
    cascade = assemble(
        recogniser=recogniser, text_model=text_model, voice=voice, phonemes=phonemes, llm=llm, llm_model=llm_model,
        llm_key=llm_key, system=system, language=code, endpoint_ms=endpoint,
    )  # fmt: skip
    cascade.warm()
    if seed is not None:
        torch.manual_seed(seed)
    if not as_json:
        print(f"models   {', '.join(cascade.models.values())}", flush=True)
    blocks = io.microphone(HEARING_RATE, 0.032) if mic else io.read_blocks(str(source), HEARING_RATE, 1.0)
    screen = _Screen(quiet=as_json)
    player = Loudspeaker(cascade.speaks.sample_rate) if play or mic else None
    results, sounds, understood, stopped = 0, 0, False, False
    try:
        for result in converse(
            cascade,
            blocks,
            on_reply=lambda reply: _follow(reply, screen, player),
            real_time=not fast and not mic,
        ):
            results, understood = results + 1, understood or bool(result.heard)
            if result.wave.numel() and not mic:
                sounds += 1
                result.save(_numbered(output, sounds))
            _tell(result, as_json, screen)
    except KeyboardInterrupt:
        stopped = True
        note("")
        if not mic:
            raise
    finally:
        screen.close()  # before anything is said about an error
        if player is not None:
            player.close(drain=not mic and not stopped)
    if not understood and not mic:
        what = "speech was noticed, but no words were understood" if results else "no speech was found"
        raise AudioError(f"{what} in {source}; record it louder, or nearer to the microphone")


def _talk_directly(
    model: str, manner: Manner, source: str | None, output: str, play: bool, endpoint: float, real_time: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """One question of a file, or one after the other from the microphone, answered by a speech model."""
    from vivavoce import vita_audio_verbs
    from vivavoce.audio import io
    from vivavoce.audio.loudspeaker import Loudspeaker

    parts = vita_audio_verbs.open_speech_model(model)
    checked = f", verified {manner.verify}, released {manner.release}" if manner.verify else ""
    screen = _Screen(quiet=as_json, model=f"{parts.name}, mode {manner.mode}{checked}")
    player = Loudspeaker(parts.sample_rate) if play else None
    try:
        if source is not None:
            result = vita_audio_verbs.converse(
                parts, io.read_blocks(source, vita_audio_verbs.HEARING_RATE, 1.0), real_time=real_time,
                on_reply=lambda reply: _follow(reply, screen, player), mode=manner.mode, verify=manner.verify,
                release=manner.release, temperature=manner.temperature, seed=manner.seed,
            )  # fmt: skip
            if result.wave.numel():
                result.save(output)
            _tell(result, as_json, screen)
            return
        blocks = io.microphone(vita_audio_verbs.HEARING_RATE, 0.032)
        for result in vita_audio_verbs.converse_live(
            parts, blocks, endpoint=endpoint / 1000, on_reply=lambda reply: _follow(reply, screen, player),
            mode=manner.mode, verify=manner.verify, release=manner.release, temperature=manner.temperature,
            seed=manner.seed,
        ):  # fmt: skip
            _tell(result, as_json, screen)
    except KeyboardInterrupt:
        note("")
        if source is not None:
            raise
    finally:
        screen.close()
        if player is not None:
            player.close(drain=source is not None)


def _on_the_line(context: typer.Context, name: str) -> bool:
    """Whether an option was written in the command, and not set for all commands in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


class _Screen:
    """Prints what is heard and answered, piece by piece; ``model``: one that does not tell what it heard."""

    def __init__(self, quiet: bool, model: str | None = None) -> None:
        self.quiet, self.open, self.model, self.named = quiet, False, model, False

    def follow(self, reply: Reply) -> None:
        if self.quiet:
            return
        for event in reply.events:
            if event.kind == "heard":
                self._begin(f"heard    {event.text.strip()}\n")
            elif event.kind == "speech_ended" and self.model is not None:
                self._begin("" if self.named else f"model    {self.model}\n")
                self.named = True
        if reply.text_piece:
            print(reply.text_piece, end="", flush=True)

    def _begin(self, before: str) -> None:
        print(f"{before}answer   ", end="", flush=True)
        self.open = True

    def close(self) -> None:
        if self.open:
            print(flush=True)
            self.open = False


def _follow(reply: Reply, screen: _Screen, player: Loudspeaker | None) -> None:
    screen.follow(reply)
    if player is not None:
        for event in reply.events:
            if event.kind == "interrupted":
                player.stop()
            elif event.kind == "taken_back":
                player.take_back(event.samples)
            elif event.kind == "reply_ended":
                player.next_answer()
        if reply.wave_piece is not None:
            player.add(reply.wave_piece)


def _tell(result: TalkResult, as_json: bool, screen: _Screen) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    from vivavoce.vita_audio_verbs import SpeechTalkResult

    screen.close()
    direct = isinstance(result, SpeechTalkResult)
    if result.first_sound_ms is not None:
        parts = ", ".join(f"{name} {value:.0f}" for name, value in result.parts_ms.items() if name != "answer")
        since = "the end of the question (" if direct else "the last word (wait for the end included; "
        print(f"sound    {result.first_sound_ms:.0f} ms after {since}{parts} ms)")
    if direct and result.drafts_accepted is not None:
        heard = f", {result.regretted_ms:.0f} ms of sound heard in vain" if result.release == "early" else ""
        print(f"drafts   {100 * result.drafts_accepted:.0f} % stood{heard}")
    if result.path:
        print(f"file     {result.path}, {result.wave.numel() / result.sample_rate:.1f} s")
    sys.stdout.flush()


def _numbered(output: str, n: int) -> str:
    """answer.wav, answer-2.wav, ..."""
    path = Path(output)
    return output if n == 1 else str(path.with_name(f"{path.stem}-{n}{path.suffix}"))
