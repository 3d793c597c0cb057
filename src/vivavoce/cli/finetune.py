"""``viva finetune``: tune a model on your own records, the short way to its recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vivavoce.cli.options import AsJson, Device, Threads, Verbose
from vivavoce.cli.train import carry_out
from vivavoce.errors import ConfigError, UnknownNameError, nearest
from vivavoce.recipes import catalogue

ENDING = "_finetune"  # of the recipes that this verb runs


def finetune(
    system: Annotated[str, typer.Argument(help="What kind of model: vita_audio.")],
    data: Annotated[Path, typer.Argument(help="The records, one JSON object a line.")],
    model: Annotated[str, typer.Option("--model", help="What is tuned: nano-talk, or a folder.")] = "nano-talk",
    run: Annotated[
        Path | None, typer.Option("--run", help=f"The folder of the run (default: {catalogue.RUNS}/RECIPE-DATA).")
    ] = None,
    held_out: Annotated[
        str, typer.Option("--held-out", help="The share of records to judge by, or a JSONL file of them.")
    ] = "0.1",
    rank: Annotated[int, typer.Option("--rank", min=0, help="Of the backbone's adapters; 0 trains all weights.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=0, help="0: three times over the records.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another option of the recipe as name=value; may be repeated."),
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.0, help="Save and stop after so long.")] = None,
    as_json: AsJson = False,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Tune a model on your own records.

    A record is a line such as

    {"messages": [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "Noon.\\n<|audio|>"}],
    "audios": ["question.wav", "answer.wav"]}

    for a spoken question and its answer. "Convert the speech to text.\\n<|audio|>" teaches to write down, "Convert the
    text to speech.\\n..." answered by <|audio|> to speak; text without sound is learned too. docs/training.md shows
    each.

    Sound becomes codes once. Part of the records is held out, and the loss on it is told, before and after. Ctrl-C
    saves and stops, --resume goes on. At the end the model lies in the run's folder, under model.

    viva finetune vita_audio data.jsonl

    viva finetune vita_audio data.jsonl --model ~/viva-runs/talk --steps 500 --held-out judge.jsonl

    viva finetune vita_audio data.jsonl --rank 0 --set rate=5e-5      (all weights)

    viva finetune vita_audio data.jsonl --resume                      (goes on)

    viva train vita_audio_finetune --options                          (what --set takes)

    viva talk question.wav --model ~/viva-runs/vita_audio_finetune-data/model
    """
    known = {name.removesuffix(ENDING): row for name, row in catalogue.RECIPES.items() if name.endswith(ENDING)}
    if system not in known:
        near = nearest(system, known)
        raise UnknownNameError(f"there is no tuning for {system!r}{near}; use {', '.join(known)}")
    if not data.expanduser().is_file():
        raise ConfigError(f"there is no file {data}; name a JSONL file of records, as viva finetune --help shows")
    from vivavoce.train.loop import check_folder
    from vivavoce.train.parallel import leads

    row, given = known[system], [f"data={data}", f"model={model}", f"held_out={held_out}", f"rank={rank}"]
    options = catalogue.options(row, [*given, f"steps={steps}", *(chosen or [])])
    folder = (run or Path(catalogue.RUNS) / options.name).expanduser()
    if leads():
        check_folder(folder, resume)
    words = ["viva", "finetune", system, str(data), "--model", model, "--run", str(folder), "--held-out", held_out]
    words += ["--rank", str(rank), "--steps", str(steps), *(word for pair in chosen or [] for word in ("--set", pair))]
    words += ["--device", device] if device else []
    again = shlex.join([*words, "--resume"])
    carry_out(row, data, options, folder, again, resume, minutes, as_json, device, threads)
