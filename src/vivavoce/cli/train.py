"""``viva train``: a recipe from the table, run to its end or as far as time allows."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vivavoce.cli.options import AsJson, Device, Threads, Verbose, note, print_json, progress, table
from vivavoce.errors import ConfigError
from vivavoce.recipes import catalogue

if TYPE_CHECKING:
    from vivavoce.recipes.catalogue import RecipeRow


def train(
    recipe: Annotated[str | None, typer.Argument(help="Which one; without a name all are listed.")] = None,
    corpus: Annotated[Path, typer.Option("--corpus", help="The folder of recorded or made speech.")] = Path(
        catalogue.CORPUS
    ),
    run: Annotated[
        Path | None, typer.Option("--run", help=f"The folder of the run (default: {catalogue.RUNS}/RECIPE).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    chosen: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the recipe as name=value; may be repeated.")
    ] = None,
    list_options: Annotated[bool, typer.Option("--options", help="List what --set takes, with defaults.")] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.0, help="Save and stop after so long.")] = None,
    as_json: AsJson = False,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Train a model by a recipe.

    A run saves itself as it goes. Ctrl-C saves and stops it; with --resume it goes on as if nothing had happened, even
    after a crash. At the end the model lies in the run's folder, under model.

    viva train                              (which recipes there are)

    viva train hift --options               (what can be set)

    viva train hift --minutes 30            (saves and stops after half an hour)

    viva train hift --resume                (goes on)

    viva train hift --device cuda           (on a GPU)

    viva train vita_audio --set stage=2 --set steps=2000 --json
    """
    if recipe is None:
        _list_recipes(as_json)
        return
    row = catalogue.recipe(recipe)
    if list_options:
        _list_options(row, as_json)
        return
    from vivavoce.train.loop import check_folder
    from vivavoce.train.parallel import leads

    options = catalogue.options(row, chosen or [])
    folder = (run or Path(catalogue.RUNS) / options.name).expanduser()
    corpus = corpus.expanduser()
    if leads():
        check_folder(folder, resume)
    if row.corpus and not any(corpus.glob("*/index.jsonl")):
        raise ConfigError(f"{corpus} holds no corpus; name one with --corpus, or make one as docs/training.md says")
    again = _again(row, corpus, folder, chosen or [], device)
    carry_out(row, corpus, options, folder, again, resume, minutes, as_json, device, threads)


def carry_out(
    row: RecipeRow, corpus: Path, options: Any, folder: Path, again: str, resume: bool, minutes: float | None,
    as_json: bool, device: str | None, threads: int | None,
) -> None:  # fmt: skip
    """Train to the end, or as far as time allows, and say how far it came; ``again``: the command that goes on."""
    from vivavoce.train import parallel
    from vivavoce.train.loop import ABOUT

    try:
        last = _run(row, corpus, options, folder, resume, minutes, as_json, device, threads)
        parallel.leave()
    except KeyboardInterrupt:
        begun = (folder / ABOUT).exists()
        print(f"viva: stopped; go on with  {again}" if begun else "viva: stopped before the run began", file=sys.stderr)
        raise typer.Exit(130) from None
    if last is None:
        return
    if last["step"] < last["steps"]:
        print(
            f"viva: stopped and saved at step {last['step']} of {last['steps']}; go on with  {again}", file=sys.stderr
        )
    if as_json:
        print_json(last)
    else:
        note(_figures(last["evaluation"]))
        print(last["model"] or folder)


def _run(
    row: RecipeRow, corpus: Path, options: Any, folder: Path, resume: bool, minutes: float | None, as_json: bool,
    device: str | None, threads: int | None,
) -> dict[str, Any] | None:  # fmt: skip
    """Train and write the model; gives how far it came, in the process that leads."""
    from vivavoce import inspection
    from vivavoce.train import loop
    from vivavoce.train.parallel import leads

    inspection.set_threads(threads)
    place = inspection.find_device(device)
    reached = 0

    def evaluated(step: int, figures: Mapping[str, float]) -> None:
        nonlocal reached
        reached = step
        if not leads():
            return
        if as_json:
            print_json({"recipe": row.name, "step": step, "evaluation": dict(figures)})
        else:
            note(f"step {step}: {_figures(figures)}")

    with progress() if leads() else contextlib.nullcontext(_silent) as report:
        ready = catalogue.opened(row, corpus, options, report, place)
        for remark in getattr(ready, "remarks", ()) if leads() else ():
            print(f"viva: {remark}", file=sys.stderr)
        reached = ready.schedule.steps
        stop_after = None if minutes is None else 60 * minutes
        figures = loop.train(
            ready, folder, resume=resume, stop_after=stop_after, report=report, evaluated=evaluated
        )  # fmt: skip
    finish, model = getattr(ready, "finish", None), None
    if finish is not None and reached == ready.schedule.steps:
        model = folder / "model"
        finish(model)
    if not leads():
        return None
    return {"recipe": row.name, "step": reached, "steps": ready.schedule.steps, "run": str(folder),
            "model": model and str(model), "evaluation": figures}  # fmt: skip


def _silent(what: str, done: float, total: float) -> None:
    """Progress in a process that does not lead."""


def _again(row: RecipeRow, corpus: Path, folder: Path, chosen: list[str], device: str | None) -> str:
    """The command that goes on."""
    words = ["viva", "train", row.name, "--corpus", str(corpus), "--run", str(folder)]
    words += [word for pair in chosen for word in ("--set", pair)] + (["--device", device] if device else [])
    return shlex.join([*words, "--resume"])


def _figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _list_recipes(as_json: bool) -> None:
    rows = catalogue.RECIPES.values()
    if as_json:
        print_json([{"name": row.name, "makes": row.makes, "needs": row.needs} for row in rows])
    else:
        table([[row.name, row.makes, row.needs] for row in rows], ["recipe", "makes", "needs"])
        print("\nviva train RECIPE --options  lists what can be set; docs/training.md tells how to make a corpus.")


def _list_options(row: RecipeRow, as_json: bool) -> None:
    found = catalogue.described(row)
    if as_json:
        print_json([{"name": name, "takes": kind, "default": default} for name, kind, default in found.fields])
    else:
        table([[name, kind, str(default)] for name, kind, default in found.fields], ["name", "takes", "default"])
        print(f"\n{found.text}")
