"""The contract of a conversation says what the one that exists does."""

from __future__ import annotations

import inspect

import pytest

from vivavoce.dialogue import Session
from vivavoce.dialogue.cascade import Cascade, CascadeSession


def opened(cascade: Cascade) -> Session:
    """Typed, so that a checker compares the two as well."""
    return cascade.session()


@pytest.mark.parametrize("name", [name for name in vars(Session) if name in ("step", "played", "close")])
def test_the_session_keeps_the_contract(name: str) -> None:
    wanted, found = (inspect.signature(getattr(owner, name)) for owner in (Session, CascadeSession))
    # what it takes beyond the contract has a default
    assert list(found.parameters)[: len(wanted.parameters)] == list(wanted.parameters)
    rest = list(found.parameters.values())[len(wanted.parameters) :]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in rest)


def test_the_contract_is_whole() -> None:
    assert {"step", "played", "close"} <= {name for name in vars(Session) if not name.startswith("_")}
