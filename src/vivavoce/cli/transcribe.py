"""``viva transcribe``: sound files to text."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivavoce.cli.options import AsJson, Device, Threads, Verbose, expand, note, print_json, progress
from vivavoce.errors import AudioError, UnknownNameError, VivaError, nearest

if TYPE_CHECKING:
    from vivavoce.asr import Segment, Transcript

FORMATS = ("txt", "srt", "vtt", "tsv", "json")


def transcribe(
    files: Annotated[list[str], typer.Argument(help="Sound files or patterns; - is standard input.")],
    form: Annotated[str, typer.Option("--format", "-f", help="txt, srt, vtt, tsv or json.")] = "txt",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for one text file a sound file.")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="Add the times of words (json).")] = False,
    language: Annotated[
        str | None,
        typer.Option("--language", "-l", envvar="VIVA_LANGUAGE", help="de or German; detected if left out."),
    ] = None,
    task: Annotated[str, typer.Option("--task", help="transcribe, or translate into English.")] = "transcribe",
    model: Annotated[
        str | None, typer.Option("--model", "-m", envvar="VIVA_MODEL", help="A name (viva models) or a path.")
    ] = None,
    beams: Annotated[int, typer.Option("--beams", help="Search width; 5 is slower and a little better.")] = 1,
    vad: Annotated[bool, typer.Option("--vad/--no-vad", help="Skip what is no speech.")] = True,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Names and words to expect.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="int8 (default on a CPU) or float32; int4 for nano-talk.")
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Write down what is said in sound files of any length.

    Text appears as it is recognised. wav, flac, ogg, opus, mp3 and, with the extra "media", mp4, m4a, webm and aac.

    viva transcribe talk.mp3

    viva transcribe *.mp3 --format srt --output subtitles

    viva transcribe interview.wav --language de --task translate

    arecord -d 5 -f cd | viva transcribe - --json
    """
    form = _format("json" if as_json else form)
    if output is not None and not output.is_dir():
        try:
            output.mkdir(parents=True)
        except OSError as error:
            raise AudioError(f"the folder {output} cannot be made ({error.strerror}); choose another") from error
    failed: VivaError | None = None
    names = expand(files)
    targets = _targets(names, form, output)
    from vivavoce import api

    for name in names:
        live = form == "txt" and output is None
        try:
            with progress() as report:
                told = _Told(name, live, report)
                made = api.transcribe(
                    name, model=model, language=language, words=words, task=task, beams=beams, vad=vad, prompt=prompt,
                    on_segment=told.segment, on_progress=told.seconds, device=device, dtype=dtype, threads=threads,
                )  # fmt: skip
        except AudioError as error:
            if len(names) == 1:
                raise
            failed = error  # the other files may be fine
            print(f"viva: {error}", file=sys.stderr)
            continue
        _deliver(made, name, form, targets.get(name), live)
    if failed is not None:
        raise typer.Exit(2)


class _Told:
    """Segments and progress of one file, as they come."""

    def __init__(self, name: str, live: bool, report) -> None:
        self.name, self.live, self.report = name, live, report
        self.length = _length(name)

    def segment(self, segment: Segment) -> None:
        if self.live:
            print(segment.text.strip(), flush=True)

    def seconds(self, done: float) -> None:
        self.report(Path(self.name).name, done, self.length)


def _length(name: str) -> float:
    from vivavoce.audio import io

    return 0.0 if name == "-" else io.info(name).duration


def _format(form: str) -> str:
    if form not in FORMATS:
        raise UnknownNameError(f"there is no format {form!r}{nearest(form, FORMATS)}; use {', '.join(FORMATS)}")
    return form


def _targets(names: list[str], form: str, output: Path | None) -> dict[str, Path]:
    """The text file of each sound file; where two would share one they keep their endings: a.wav.srt, a.flac.srt."""
    if output is None:
        return {}
    stems = {name: "stdin" if name == "-" else Path(name).stem for name in names}
    shared = Counter(stems.values())
    targets = {
        name: output / f"{stem if shared[stem] == 1 else Path(name).name}.{form}" for name, stem in stems.items()
    }
    for target, count in Counter(targets.values()).items():
        if count > 1:
            raise AudioError(f"{count} of the sound files would write to {target}; give each its own run and folder")
    return targets


def _deliver(made: Transcript, name: str, form: str, target: Path | None, live: bool) -> None:
    """Print what has not been printed yet, or write the file."""
    if live:
        if not made.segments:
            note(f"{name}: no speech was found")
        return
    if form == "json" and target is None:
        print_json({"file": name, "model": ", ".join(made.models), **made.to_dict()})
        return
    from vivavoce.asr import write_transcript

    text = write_transcript(made, form)
    if target is None:
        sys.stdout.write(text)
        return
    from vivavoce.audio.io import NewFile

    with NewFile(target) as scratch:
        scratch.write_text(text, "utf-8")
    print(target)
