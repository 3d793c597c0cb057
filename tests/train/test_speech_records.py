"""Records of users: the published form is read, and each fault names file, line and field in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.own_records import rows, write_records
from vivavoce.dialogue.vita_audio_prompts import LUKE, Message
from vivavoce.errors import ConfigError
from vivavoce.train import speech_records
from vivavoce.train.speech_records import TASKS, read_records

CLIP = "<|audio|>"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "b.wav").write_bytes(b"y")
    return tmp_path


def write(desk: Path, *lines: Any) -> Path:
    path = desk / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def test_the_published_form_is_read(tmp_path: Path) -> None:
    path = write_records(tmp_path / "own", 3)
    found = read_records(path)
    assert [record.task for record in found] == [*TASKS] * 3 and [record.line for record in found] == [*range(1, 13)]
    assert found[0].messages == (Message("user", CLIP), Message("assistant", f"four\n{CLIP}"))
    assert found[0].audios == (tmp_path / "own/sounds/one.wav", tmp_path / "own/sounds/four.wav")
    assert found[1].audios == found[2].audios == found[0].audios[:1] and found[3].audios == ()
    assert len(rows(3)) == len(found)


def test_the_page_shows_what_is_read(tmp_path: Path) -> None:
    """docs/training.md, "Your own data"."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    shown = page.partition("```json\n")[2].partition("```")[0]
    write_records(tmp_path, 1)
    (tmp_path / "shown.jsonl").write_text(shown, "utf-8")
    assert read_records(tmp_path / "shown.jsonl") == read_records(tmp_path / "data.jsonl")


def test_other_names_and_longer_conversations(desk: Path) -> None:
    said = [{"role": "human", "content": f"{CLIP} and {CLIP}"}, {"role": "gpt", "content": "two"}]
    more = [("system", "Be brief."), ("user", CLIP), ("assistant", f"hm\n{CLIP}"), ("user", "so?"), ("assistant", "no")]
    absolute = str(desk / "a.wav")
    path = write(
        desk,
        {"conversations": said, "messages": [], "audios": ["a.wav", absolute], "id": 7, "images": [], "videos": None},
        "",
        {"messages": turns(*more), "audios": ["b.wav", "a.wav"]},
        {"messages": turns(("user", "hello"), ("assistant", "yes")), "audios": None},
    )
    one, two, three = read_records(path)
    assert [m.role for m in one.messages] == ["user", "assistant"] and one.task == "transcribe"
    assert one.audios == (desk / "a.wav", desk / "a.wav") and two.line == 3 and two.task == "text" == three.task


def test_a_bare_question_is_put_as_talk_puts_it(desk: Path) -> None:
    asked = ("assistant", f"yes\n{CLIP}")
    path = write(
        desk,
        {"messages": turns(("user", CLIP), asked), "audios": ["a.wav", "b.wav"]},
        {"messages": turns(("system", "Be brief."), ("user", CLIP), asked), "audios": ["a.wav", "b.wav"]},
        {"messages": turns(("user", f"Now: {CLIP}"), asked), "audios": ["a.wav", "b.wav"]},
    )
    bare, told, worded = read_records(path)
    put = bare.as_talked()
    assert put.messages == (Message("system", LUKE), Message("user", f"\n{CLIP}"), bare.messages[1])
    assert put.audios == bare.audios and put.task == "answer"
    assert told.as_talked() == told and worded.as_talked() == worded


GOOD = {"messages": turns(("user", "hello"), ("assistant", "yes"))}
FAULTS = [
    ("{oops", "line 2 is not JSON (column 2)"),
    ('"text"', "line 2 is text, not an object"),
    ("[" * 100_000, "line 2 is not JSON (not UTF-8, or nested too deep)"),
    ({"message": []}, "line 2 has no field 'messages' (did you mean 'message'?)"),
    ({"messages": {}}, "line 2, messages must be a list of turns, not an object"),
    ({"messages": []}, "line 2, messages must be a list of turns, not an empty list"),
    ({"messages": ["hi"]}, "line 2, messages[0] must be an object with role and content, not text"),
    ({"messages": [{"role": "user", "contents": "x"}]}, "messages[0] has no field 'content' (did you mean"),
    ({"messages": turns(("user", 3))}, "line 2, messages[0].content must be text, not a number"),
    ({"messages": turns(("user", None))}, "messages[0].content must be text, not null"),
    ({"messages": turns(("usr", "x"))}, "messages[0].role: there is no role 'usr' (did you mean 'user'?)"),
    ({"messages": turns(("user", "x"), ("assistant", " \n"))}, "line 2, messages[1].content is empty"),
    ({"messages": turns(("user", "Convert the text to speech.\n"), ("assistant", CLIP))}, "messages[0].content is"),
    ({"messages": turns(("user", "x"), ("assistant", "\ud800"))}, "messages[1].content holds half a character"),
    ({"messages": turns(("user", "x"))}, "messages[0].role: the last turn must be the assistant's"),
    ({"messages": turns(("user", "x"), ("system", "y"))}, "messages[1].role: a system message stands first"),
    ({"messages": turns(("user", "x"), ("assistant", CLIP * 2)), "audios": ["a.wav"] * 2}, "more than one <|audio|>"),
    ({**GOOD, "audios": ["a.wav"]}, "line 2, audios: 1 file for 0 <|audio|> in the messages"),
    ({"messages": turns(("user", CLIP), ("assistant", "x"))}, "audios: 0 files for 1 <|audio|> in the messages"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": ["c.wav"]}, "audios[0]: there is no file"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": [""]}, "audios[0]: there is no file"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": ["."]}, "audios[0]: there is no file"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": ["a\0"]}, "audios[0]: there is no file"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": ["a" * 5000]}, "audios[0]: there is no file"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": [3]}, "audios[0] must be the name of a file"),
    ({"messages": turns(("user", CLIP), ("assistant", "x")), "audios": "a.wav"}, "audios must be a list of file names"),
    ({**GOOD, "images": ["cat.png"]}, "line 2, images: pictures are not learned from"),
    ({"messages": turns(*[("user", "x"), ("assistant", "y")] * 501)}, "messages has 1002 turns, more than 1000"),
]


@pytest.mark.parametrize(("line", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_a_fault_names_file_line_and_field(desk: Path, line: Any, said: str) -> None:
    path = write(desk, GOOD, line)
    with pytest.raises(ConfigError) as caught:
        read_records(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and said in text and "\n" not in text and len(text) < 6000


def test_sizes_are_bounded(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk / "data.jsonl"
    path.write_bytes(b'{"messages": "' + b"x" * speech_records.MAX_LINE + b'"}\n')
    with pytest.raises(ConfigError, match="line 1 is longer than 1048576 bytes"):
        read_records(path)
    monkeypatch.setattr(speech_records, "MAX_RECORDS", 2)
    with pytest.raises(ConfigError, match="holds more than 2 records"):
        read_records(write(desk, GOOD, "", GOOD, GOOD))


def test_what_is_no_file_of_records(desk: Path) -> None:
    with pytest.raises(ConfigError, match="holds no records"):
        read_records(write(desk, "", " "))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(desk / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(desk)
    (desk / "data.jsonl").write_bytes(b'{"messages": "\xff\xfe"}\n')
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        read_records(desk / "data.jsonl")
    if hasattr(os, "mkfifo"):
        os.mkfifo(desk / "pipe.wav")
        told = {"messages": turns(("user", CLIP), ("assistant", "x")), "audios": ["pipe.wav"]}
        with pytest.raises(ConfigError, match="there is no file"):
            read_records(write(desk, told))


pieces = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "assistant", CLIP, "a.wav", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "conversations", "role", "content", "audios"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=pieces)
def test_whatever_stands_there_is_read_or_refused(desk: Path, value: Any) -> None:
    try:
        found = read_records(write(desk, value))
    except ConfigError:
        return
    assert all(message.content.strip() for record in found for message in record.messages)
