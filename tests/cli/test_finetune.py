"""``viva finetune``: from a file of records to a folder that talks, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.own_records import rows, write_records, write_talk
from vivavoce.cli import main

TINY = ("--model", "talk", "--rank", "4", "--steps", "3", "--set", "budget=500", "--set", "written=1")


@pytest.fixture(scope="module")
def desk_of_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    write_records(folder, 4)
    write_talk(folder / "talk", modules=3)
    return folder


@pytest.fixture
def viva(desk_of_records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run ``viva ...`` in this process and in that folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(desk_of_records)
    monkeypatch.setenv("HOME", str(desk_of_records / "home"))
    monkeypatch.setenv("VIVA_THREADS", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


def test_from_records_to_a_folder_that_talks(viva, desk_of_records: Path) -> None:
    code, out, err = viva("finetune", "vita_audio", "data.jsonl", *TINY, "--json")
    assert code == 0 and err == ""
    *told, last = [json.loads(line) for line in out.splitlines()]
    run = desk_of_records / "home" / "viva-runs" / "vita_audio_finetune-data"
    assert [row["step"] for row in told] == [1, 2, 3] and last["evaluation"]["loss"] < last["evaluation"]["loss before"]
    assert Path(last["run"]) == run and Path(last["model"]) == run / "model"
    assert {path.name for path in (run / "model").iterdir()} >= {"adapters.safetensors", "tokenizer.json"}
    assert len(list((desk_of_records / "viva-codes").glob("*/*.npy"))) == 7
    code, out, _ = viva("talk", "sounds/one.wav", "--model", str(run / "model"), "--json")
    assert code == 0 and json.loads(out)["models"] == {"speech model": str(run / "model")}


def test_it_stops_and_goes_on_to_the_same_weights(viva, desk_of_records: Path) -> None:
    given = ("finetune", "vita_audio", "data.jsonl", *TINY, "--held-out", "0.2")
    code, out, err = viva(*given, "--run", "whole")
    assert code == 0 and out == "whole/model\n"
    code, out, err = viva(*given, "--run", "timed", "--minutes", "0")
    assert code == 0 and out == "timed\n" and not (desk_of_records / "timed" / "model").exists()
    said, again = err.strip().split("  ")
    assert said == "viva: stopped and saved at step 1 of 3; go on with" and again.endswith("--resume")
    assert viva(*again.split()[1:])[0] == 0
    whole, other = (load_file(desk_of_records / name / "checkpoint.safetensors") for name in ("whole", "timed"))
    assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_the_long_way_is_the_same(viva, desk_of_records: Path) -> None:
    values = ("data=data.jsonl", "model=talk", "rank=4", "steps=1", "budget=500", "written=0")
    code, out, err = viva("train", "vita_audio_finetune", "--run", "long", *[w for v in values for w in ("--set", v)])
    assert code == 0 and err == "" and out == "long/model\n"


def test_it_teaches(viva) -> None:
    out = viva("finetune", "--help")[1]
    told = " ".join(out.replace("│", " ").split())
    for words in (
        "messages",
        "<|audio|>",
        "Convert the speech to text.",
        "--held-out",
        "viva finetune vita_audio data",
    ):
        assert words in told, words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("vita_audoi", "data.jsonl"),
            "there is no tuning for 'vita_audoi' (did you mean 'vita_audio'?); use vita_audio",
        ),
        (("vita_audio", "nowhere.jsonl"), "there is no file nowhere.jsonl; name a JSONL file of records"),
        (("vita_audio", "bad.jsonl"), "bad.jsonl, line 2, audios[0]: there is no file 'nothing.wav'"),
        (("vita_audio", "data.jsonl", "--model", "sounds"), "sounds is no VITA-Audio; name a folder that holds one"),
        (("vita_audio", "data.jsonl", "--set", "stepz=1"), "has no option 'stepz' (did you mean 'steps'?)"),
        (("vita_audio", "data.jsonl", "--held-out", "2"), "held_out must be a share from 0 to below 1 or a JSONL file"),
        (("vita_audio", "data.jsonl", "--resume"), "holds no run to go on with; leave --resume out"),
        (("vita_audio", "noise.jsonl"), "noise.jsonl, line 1, audios[0]: data.jsonl is no sound file that can be read"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    viva, desk_of_records: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    first, second = rows(1)[:2]
    bad = {**second, "audios": ["nothing.wav"]}
    (desk_of_records / "bad.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(bad)}\n", "utf-8")
    (desk_of_records / "noise.jsonl").write_text(json.dumps({**second, "audios": ["data.jsonl"]}), "utf-8")
    where = () if "--model" in arguments else ("--model", "talk")
    code, out, err = viva("finetune", *arguments, *where, "--run", str(tmp_path / "run"))
    assert code == 2 and out == "" and said in err and err.startswith("viva: ") and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_records_that_are_too_long_are_told(viva, desk_of_records: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x y " * 400}, {"role": "assistant", "content": "so"}]}
    lines = [json.dumps(row) for row in (long, *rows(2))]
    (desk_of_records / "long.jsonl").write_text("\n".join(lines), "utf-8")
    code, _, err = viva("finetune", "vita_audio", "long.jsonl", *TINY, "--run", "long-run", "--minutes", "0")
    assert code == 0 and "viva: 1 records are longer than 256 tokens and left out; cut them to use them\n" in err
