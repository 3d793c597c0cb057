"""The spoken domain: every question has its one answer, splits are apart, and the vocabulary stays small."""

from __future__ import annotations

import re

import pytest

from vivavoce.errors import UnknownNameError
from vivavoce.recipes.spoken_domain import (
    DIGITS,
    NUMBERS,
    SKILLS,
    VOCABULARY,
    Question,
    answer_to,
    every_listed,
    questions,
    sentences,
    split_of,
    written,
)

SPLITS = ("train", "dev", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_is_read_back_with_its_answer(split) -> None:
    made = questions(1, 4_000, split=split)
    assert [answer_to(question.text) for question in made] == made
    assert {question.skill for question in made} == set(SKILLS)


def test_every_listed_question_is_read_back() -> None:
    listed = list(every_listed())
    assert [answer_to(question.text) for question in listed] == listed
    assert len({question.text for question in listed}) == len(listed)
    numbers = {"opposites": 60, "animals": 12, "colours": 15, "talk": 12, "facts": 25}
    for skill, least in numbers.items():
        assert sum(question.skill == skill for question in listed) >= least


@pytest.mark.parametrize(
    ("text", "answer", "skill"),
    [
        ("repeat three five nine", "you said three five nine", "repeat"),
        ("say three five nine", "you said three five nine", "repeat"),
        ("three five nine", "you said three five nine", "digits"),
        ("what is three plus five", "it is eight", "add"),
        ("add three and five", "it is eight", "add"),
        ("twenty plus twenty", "it is forty", "add"),
        ("take five from nine", "it is four", "subtract"),
        ("double twelve", "double twelve is twenty four", "double"),
        ("what number comes after seven", "eight comes after seven", "next"),
        ("what comes before one", "zero comes before one", "previous"),
        ("say three five nine backwards", "backwards it is nine five three", "backwards"),
        ("count from three to six", "three four five six", "count"),
        ("which is bigger three or nine", "nine is bigger", "compare"),
        ("which is smaller three or nine", "three is smaller", "compare"),
        ("what day comes after monday", "tuesday comes after monday", "days"),
        ("what day comes before monday", "sunday comes before monday", "days"),
        ("which month comes after december", "january comes after december", "months"),
        ("what is the opposite of hot", "the opposite of hot is cold", "opposites"),
        ("what does a dog say", "a dog says woof", "animals"),
        ("what colour is the sky", "the sky is blue", "colours"),
        ("hello", "hello how can i help you", "talk"),
        ("what is the capital of france", "the capital of france is paris", "facts"),
    ],
)
def test_answers_are_right(text, answer, skill) -> None:
    assert answer_to(text) == Question(text, answer, skill)


@pytest.mark.parametrize(
    "text",
    ["", "five minus nine", "one two three four five", "count from three to twelve", "count from six to three",
     "which is bigger three or three", "what comes before zero", "what day comes after june", "add dogs and cats",
     "what does a table say", "twenty", "say ten", "What is three plus five"],
)  # fmt: skip
def test_what_lies_outside_has_no_answer(text) -> None:
    assert answer_to(text) is None


def test_sums_agree_with_arithmetic() -> None:
    value = {word: n for n, word in enumerate(NUMBERS)}
    for question in questions(2, 3_000, ["add", "subtract", "double"]):
        found = [value[word] for word in question.text.split() if word in value]
        if question.skill == "double":
            assert question.answer == f"double {NUMBERS[found[0]]} is {NUMBERS[2 * found[0]]}"
        else:
            a, b = found[::-1] if question.text.startswith("take") else found
            assert question.answer == "it is " + NUMBERS[a + b if question.skill == "add" else a - b]


def combination(question: Question) -> str | None:
    """The numbers that decide the split; None where any split will do."""
    numbers = [word for word in question.text.split() if word in NUMBERS]
    if question.skill in ("repeat", "digits", "backwards"):
        return " ".join(numbers) if len(numbers) > 2 else None
    if question.skill in ("add", "subtract", "compare", "count"):
        return f"{question.skill} {sorted(numbers)}"
    return None


def test_splits_are_disjoint_in_combinations_and_share_the_tables() -> None:
    made = {split: questions(0, 20_000, split=split) for split in SPLITS}
    seen = {split: {combination(question) for question in made[split]} - {None} for split in SPLITS}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["dev"]
    assert not seen["dev"] & seen["test"]
    listed = [{q.text for q in made[split] if q.skill in ("days", "animals")} for split in SPLITS]
    assert listed[0] == listed[1] == listed[2]


def test_skills_are_balanced_and_draws_follow_the_seed() -> None:
    made = questions(5, 17 * 30)
    assert {sum(q.skill == name for q in made) for name in SKILLS} == {30}
    assert made == questions(5, 17 * 30)
    assert made != questions(6, 17 * 30)
    assert [q.skill for q in questions(0, 3, ["add"])] == ["add"] * 3
    # A hash that moved would mix the splits of corpora made before.
    assert [word for word in DIGITS if split_of(f"three four {word}") == "test"] == ["one", "eight", "nine"]


def test_an_unknown_skill_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'repeat'"):
        questions(0, 1, ["repaet"])


def test_texts_are_words_of_the_vocabulary() -> None:
    assert 300 <= len(VOCABULARY) <= 450
    made = questions(3, 6_000)
    texts = [text for q in made for text in (q.text, q.answer)] + sentences(3, 3_000)
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", text) for text in texts)
    assert {word for text in texts for word in text.split()} <= set(VOCABULARY)
    assert all(2 <= len(question.answer.split()) <= 7 for question in made)


def test_sentences_differ_and_keep_to_their_split() -> None:
    made = {split: sentences(0, 500, split) for split in SPLITS}
    for split, texts in made.items():
        assert len(set(texts)) == 500
        assert {split_of(text) for text in texts} == {split}
        assert all(3 <= len(text.split()) <= 9 for text in texts)
    assert made["train"] == sentences(0, 500)


def test_written_text_has_capitals_and_an_end() -> None:
    assert written("what day comes after monday") == "What day comes after Monday?"
    assert written("how can i help you") == "How can I help you?"
    assert written("you said three") == "You said three."
