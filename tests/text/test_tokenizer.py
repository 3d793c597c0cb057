"""Tokenizer tables inside GGUF files: what is missing or odd is one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vivavoce.errors import CheckpointError
from vivavoce.text.tokenizer import Tokenizer


def tables(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "tokens": ["a", "b", "c", "ab", "abc", "<|end|>"], "token_type": np.array([1, 1, 1, 1, 1, 3]),
        "merges": ["a b", "ab c"], "pre": "smollm",
    }  # fmt: skip
    made |= changed
    return {f"tokenizer.ggml.{key}": value for key, value in made.items() if value is not None}


def test_text_is_cut_and_joined() -> None:
    found = Tokenizer.from_gguf(tables())
    assert found.encode("abcab") == [4, 3] and found.decode([4, 5, 3]) == "abcab" and found.specials == {"<|end|>": 5}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": None}, "has no tokenizer.ggml.tokens;"),
        ({"merges": None, "token_type": None}, "has no tokenizer.ggml.token_type, tokenizer.ggml.merges;"),
        ({"merges": ["ab"]}, "do not fit each other"),
        ({"merges": [1, 2]}, "do not fit each other"),
        ({"merges": np.array([1, 2])}, "do not fit each other"),
        ({"merges": 7}, "do not fit each other"),
        ({"merges": ["a x"]}, "merges of this GGUF file"),
        ({"tokens": [1, 2, 3, 4, 5, 6]}, "do not fit each other"),
        ({"tokens": 3}, "do not fit each other"),
        ({"token_type": np.array([1, 1])}, "do not fit each other"),
        ({"pre": np.array([1, 1])}, "cuts text by the rule"),
        ({"pre": "x" * 9999}, "cuts text by the rule"),
    ],
)
def test_odd_tables_are_one_sentence(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        Tokenizer.from_gguf(tables(**changed))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
