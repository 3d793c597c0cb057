"""``viva speak``: text to a sound file, to the loudspeaker, or down a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivavoce.cli.options import AsJson, Device, Seed, Threads, Verbose, note, print_json
from vivavoce.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from vivavoce.tts.vits_voice import VITSVoice
    from vivavoce.vita_audio_verbs import SpeechModelVoice

MAX_BYTES = 1 << 24


def speak(
    text: Annotated[str | None, typer.Argument(help="What to say; - is standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Read the text from a file.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="wav, flac, ogg, opus or mp3; - is wav on standard output.")
    ] = None,
    play: Annotated[bool, typer.Option("--play", help="Play it while it is made.")] = False,
    voice: Annotated[
        str, typer.Option("--voice", envvar="VIVA_VOICE", help="A name (viva models) or a path.")
    ] = "vits-joe",
    speaker: Annotated[str | None, typer.Option("--speaker", help="Which one, where a model has several.")] = None,
    speed: Annotated[float, typer.Option("--speed", help="1.2 is a fifth quicker.")] = 1.0,
    seed: Seed = None,
    phonemes: Annotated[str, typer.Option("--phonemes", help="auto, espeak or lexicon (English only).")] = "auto",
    as_json: AsJson = False,
    threads: Threads = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Say a text, and write or play the sound.

    Without -o the sound goes to speech.wav, or down the pipe where there is one.

    viva speak "Good morning." -o morning.wav

    viva speak --file story.txt -o story.mp3 --speed 0.9

    echo "Dinner is ready." | viva speak - -o - | aplay

    viva speak "Hello there." --json    (times of every word)
    """
    said = _text(text, file)
    target = output or ("speech.wav" if as_json or sys.stdout.isatty() or play else "-")
    if as_json and target == "-":
        raise ConfigError("--json and sound cannot share standard output; give a file with -o")
    from vivavoce import api
    from vivavoce.audio import io

    io.check_format(target)
    if output is not None or as_json or not play:  # played alone it needs no file
        io.check_target(target)
    api.set_threads(threads)
    ready = api.open_voice(voice, phonemes=phonemes, device=device)
    choice: dict[str, Any] = {"voice": speaker, "speed": speed, "generator": 0 if seed is None else seed}
    if as_json:
        print_json(_speak_timed(ready, said, target, choice))
        return
    chunks = _spoken(ready.stream(said, **choice))
    began = time.perf_counter()
    if play:
        if output is not None:
            chunks = _tee(chunks, target, ready.sample_rate)
        io.play(chunks, ready.sample_rate)
        return
    length = io.save_stream(target, chunks, ready.sample_rate) / ready.sample_rate
    took = time.perf_counter() - began
    note(f"{target}: {length:.1f} s of speech in {took:.1f} s")


def _text(text: str | None, file: Path | None) -> str:
    if text is not None and file is not None:
        raise ConfigError("a text and --file exclude each other; give one of the two")
    if text is None and file is None:
        raise ConfigError('give a text in quotes, - for standard input, or --file FILE: viva speak "Good morning."')
    try:
        if file is not None:
            if file.stat().st_size > MAX_BYTES:
                raise ConfigError(f"{file} is too long to say ({file.stat().st_size >> 20} MB); cut it into parts")
            return file.read_text("utf-8")
        return sys.stdin.buffer.read(MAX_BYTES).decode("utf-8") if text == "-" else str(text)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file or 'standard input'} is not UTF-8 text; save it as UTF-8") from error


def _spoken(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The chunks; ConfigError where there are none, before a file is begun."""
    first = next(chunks, None)
    if first is None:
        raise ConfigError("the text holds nothing that can be spoken; write words")

    def all_of_them() -> Iterator[np.ndarray]:
        yield first
        yield from chunks

    return all_of_them()


def _tee(chunks: Iterator[np.ndarray], target: str, sample_rate: int) -> Iterator[np.ndarray]:
    """Hand the chunks on and write them all at the end."""
    from vivavoce.audio import io

    kept = []
    for chunk in chunks:
        kept.append(chunk)
        yield chunk
    io.save_stream(target, kept, sample_rate)


def _speak_timed(ready: VITSVoice | SpeechModelVoice, text: str, target: str, choice: dict[str, Any]) -> dict[str, Any]:
    """Write the file and say when its first sound was there and when each word sounds."""
    from vivavoce.audio import io

    began = time.perf_counter()
    next(_spoken(ready.stream(text, **choice)))
    first = time.perf_counter() - began
    speech = ready.synthesize(text, **choice)
    io.save(target, speech.wave, speech.sample_rate)
    return {
        "wave": target,
        "sample_rate": speech.sample_rate,
        "duration": speech.duration_s,
        "first_sound_ms": round(1000 * first, 1),
        "alignment": [asdict(span) for span in speech.alignment],
        "phonemes": [asdict(span) for span in speech.phonemes],
    }
