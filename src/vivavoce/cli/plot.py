"""``viva plot``: the wave and mel spectrogram of a sound file as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vivavoce.cli.options import AsJson, Threads, Verbose, print_json
from vivavoce.errors import ConfigError


def plot(
    file: Annotated[str, typer.Argument(help="A sound file; - is standard input.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture, a .png file.")] = Path("plot.png"),
    words: Annotated[bool, typer.Option("--words", help="Recognise the words and mark them.")] = False,
    model: Annotated[str | None, typer.Option("--model", envvar="VIVA_MODEL", help="Recogniser for --words.")] = None,
    as_json: AsJson = False,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Draw the wave and the mel spectrogram of a recording.

    viva plot question.wav -o question.png --words
    """
    if output.suffix.lower() != ".png":
        raise ConfigError(f"the picture is a png; give a name such as {output.with_suffix('.png')}")
    from vivavoce import api
    from vivavoce.asr.whisper import SAMPLE_RATE
    from vivavoce.audio import io
    from vivavoce.audio.plot import Mark, draw

    io.check_target(output)
    api.set_threads(threads)
    wave, rate = io.load(file, SAMPLE_RATE)
    marks = []
    if words:
        found = api.transcribe(wave, rate, model=model, words=True, threads=threads)
        marks = [Mark(word.word.strip(), word.start, word.end) for word in found.words]
    draw(output, wave, rate, marks)
    if as_json:
        print_json({"picture": str(output), "duration": wave.numel() / rate, "words": [m.text for m in marks]})
    else:
        print(output)
