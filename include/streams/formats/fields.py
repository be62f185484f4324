"""The types of a contract's fields, as the derivations of schemas need them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, FutureDatetime, NaiveDatetime, PastDatetime
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_SCALARS = (bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID)


@dataclass(frozen=True)
class FieldType:
    """The type of a field.

    Attributes:
        kind: One of `_SCALARS`, `Enum` for a choice of texts, `list`, `dict`, `BaseModel`, or `Union` for several
            models.
        is_nullable: Whether null is a value of it.
        items: The types in a list or a map, or the branches of a union.
        model: The pydantic model of a record.
        choices: The texts of a choice.
        name: The name of a choice's class; empty if it has none.
        digits: (precision, scale) of a decimal, if the contract limits both.
        is_aware: Whether a time has an offset.
    """

    kind: Any
    is_nullable: bool = False
    items: tuple[FieldType, ...] = ()
    model: type[BaseModel] | None = None
    choices: tuple[str, ...] = ()
    name: str = ""
    digits: tuple[int, int] | None = None
    is_aware: bool = True
    marks: Mapping[str, Any] = field(default_factory=dict, compare=False)


def fields_of(model: type[BaseModel]) -> Iterable[tuple[str, FieldInfo, FieldType | None]]:
    """(name, field, type) of a model's fields; the type is None if no schema can express it.

    Args:
        model: The model.

    Yields:
        The fields in their order.
    """
    for name, info in model.model_fields.items():
        yield name, info, type_of(info.annotation, info.metadata)


def mark_of(info: FieldInfo, name: str) -> Any:
    """What a field says in its `json_schema_extra`, such as "x-aliases"; None if it says nothing.

    Args:
        info: The field.
        name: The keyword.
    """
    extra = info.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def default_of(info: FieldInfo) -> Any:
    """The default of a field; `PydanticUndefined` if it is required, or computed."""
    return PydanticUndefined if info.is_required() or info.default_factory is not None else info.default


def type_of(annotation: Any, metadata: Sequence[Any] = ()) -> FieldType | None:
    """The type of an annotation.

    Args:
        annotation: The annotation.
        metadata: What pydantic has already taken from it.

    Returns:
        The type; None if no schema can express it.
    """
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        nested = [part for each in more for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return type_of(inner, [*nested, *metadata])
    if get_origin(annotation) in (Union, UnionType):
        return _union(get_args(annotation), metadata)
    if get_origin(annotation) is Literal:
        return _literal(get_args(annotation))
    if get_origin(annotation) in (list, tuple, set, frozenset, Sequence):
        arguments = [each for each in get_args(annotation) if each is not Ellipsis]
        item = type_of(arguments[0]) if len(arguments) == 1 else None
        return None if item is None else FieldType(list, items=(item,))
    if get_origin(annotation) in (dict, Mapping):
        key, value = get_args(annotation)
        keys, item = type_of(key), type_of(value)
        is_text = keys is not None and keys.kind is str
        return None if item is None or not is_text else FieldType(dict, items=(item,))
    if annotation in (AwareDatetime, PastDatetime, FutureDatetime, NaiveDatetime):
        return FieldType(datetime, is_aware=annotation is not NaiveDatetime)
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, Enum):
        values = [member.value for member in annotation]
        if all(isinstance(value, str) for value in values):
            return FieldType(Enum, choices=tuple(values), name=annotation.__name__)
        return FieldType(int) if all(type(value) is int for value in values) else None
    if issubclass(annotation, BaseModel):
        return FieldType(BaseModel, model=annotation)
    if annotation is Decimal:
        return FieldType(Decimal, digits=_digits(metadata))
    return FieldType(annotation) if annotation in _SCALARS else None


def _union(branches: Sequence[Any], metadata: Sequence[Any]) -> FieldType | None:
    types = [type_of(branch, metadata) for branch in branches if branch is not NoneType]
    known = [each for each in types if each is not None]
    if len(known) != len(types):
        return None
    is_nullable = NoneType in branches or any(each.is_nullable for each in known)
    if len(known) == 1:
        return FieldType(**{**vars(known[0]), "is_nullable": is_nullable})
    return FieldType(Union, is_nullable=is_nullable, items=tuple(known))


def _literal(values: Sequence[Any]) -> FieldType | None:
    if all(type(value) is int for value in values):
        return FieldType(int)
    if all(isinstance(value, str) for value in values):
        # One text is a tag, and no choice.
        return FieldType(str) if len(values) == 1 else FieldType(Enum, choices=tuple(map(str, values)))
    return None


def _digits(metadata: Sequence[Any]) -> tuple[int, int] | None:
    found: dict[str, int] = {}
    for part in metadata:
        for name in ("max_digits", "decimal_places"):
            if getattr(part, name, None) is not None:
                found[name] = getattr(part, name)
    return (found["max_digits"], found["decimal_places"]) if len(found) == 2 else None
