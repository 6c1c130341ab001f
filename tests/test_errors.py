"""The error tree: every class of it reaches another process as it was raised."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest

from aicache_tasks import errors
from aicache_tasks.errors import (
    AICacheError,
    KeyEncodingError,
    MissingExtraError,
    NotStorable,
    StoreRefused,
    StoreUnavailable,
)
from aicache_tasks.stores.guard import BudgetSpent
from aicache_tasks.stores.resp import UnknownScript

OWN_CONSTRUCTORS: dict[type[AICacheError], AICacheError] = {
    KeyEncodingError: KeyEncodingError("options.image", "cycle"),
    MissingExtraError: MissingExtraError("openai", "openai"),
    NotStorable: NotStorable("too_large", "5 bytes of 4"),
    StoreUnavailable: StoreUnavailable("TimeoutError", answered=True),
    StoreRefused: StoreRefused("OutOfMemoryError OOM", writes=True),
    UnknownScript: UnknownScript("NoScriptError NOSCRIPT", writes=False),
    BudgetSpent: BudgetSpent(),
}


def tree(root: type[AICacheError] = AICacheError) -> Iterator[type[AICacheError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("aicache_tasks"):
            yield from tree(child)


CLASSES = sorted(set(tree()), key=lambda kind: kind.__name__)


def sample(kind: type[AICacheError]) -> AICacheError:
    return OWN_CONSTRUCTORS[kind] if kind in OWN_CONSTRUCTORS else kind("what happened")


def attributes(error: AICacheError) -> dict[str, object]:
    names = [name for name in dir(error) if not name.startswith("__") or name == "__notes__"]
    return {name: getattr(error, name) for name in names if not callable(getattr(error, name))}


def test_the_tree_is_the_one_of_the_module() -> None:
    named = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AICacheError)}
    assert named <= set(CLASSES)
    assert len(named) >= 14


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_after_pickling(kind: type[AICacheError], protocol: int) -> None:
    error = sample(kind)
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), again.args) == (str(error), error.args)
        assert attributes(again) == attributes(error)


def test_a_note_on_an_error_stays_on_it() -> None:
    error = KeyEncodingError("options.image", "cycle")
    error.add_note("in task shop.summarize")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["in task shop.summarize"]
