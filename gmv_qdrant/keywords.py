"""Keywords that several methods of `Workspace` share, and a sentence for those that are misspelt."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, get_args, get_type_hints

from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.ledger.queries import ValueFunction

T = TypeVar("T")


class ValueOptions(TypedDict, total=False):
    """How evidence becomes values: the fields of `ValueFunction`, or the name that `calibrate` kept one under."""

    k: int | None
    temperature: float | None
    calibration: str | None
    quality_weighted: bool
    batch: str | None
    null_distance: float | None
    relative: bool
    as_of: str | None


DEFAULTS = {field.name: field.default for field in dataclasses.fields(ValueFunction)}
"""Of `ValueOptions`; a setting's is None, "not given"."""


def checked_keywords(workspace: type[T]) -> type[T]:
    """A misspelt keyword of a method is a `SettingsError` that names the near one; signatures show all of them."""
    for name, member in list(vars(workspace).items()):
        method = member.__func__ if isinstance(member, classmethod) else member
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            checked = _checked(method)
            setattr(workspace, name, classmethod(checked) if isinstance(member, classmethod) else checked)
    return workspace


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)
    shown: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        shown += _options(parameter) if parameter.kind is inspect.Parameter.VAR_KEYWORD else [parameter]
    known = [parameter.name for parameter in shown]

    @functools.wraps(method)
    def called(*args: Any, **options: Any) -> Any:
        for name in options:
            if name not in known:
                verb = method.__name__ if method.__name__ != "__init__" else "Workspace"
                raise SettingsError(f"{verb}() has no option {name!r}{did_you_mean(name, known)}")
        return method(*args, **options)

    called.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return called


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """``**options: Unpack[a TypedDict]``: each of its names is an option."""
    kinds = get_type_hints(get_args(parameter.annotation)[0])
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=kind)
        for name, kind in kinds.items()
    ]
