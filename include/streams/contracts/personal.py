"""Mark fields that hold data of persons: `text: Annotated[str, Personal()]`.

The Streams page masks these fields in dead letters, except for users who may see them. The mark changes neither the
contract's schema nor its validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from include.streams.contracts.foreign import At, ForeignContract, FromHeader, sources_of
from include.streams.contracts.topics import Topic

MASK = "•••"


class Personal:
    """Marks a field of a contract: it holds data of a person."""


def has_personal_fields(topic: Topic) -> bool:
    """Whether a contract of the topic marks a field."""
    return any(_is_personal(field) for contract in topic.contracts for field in contract.model_fields.values())


def public_names(topic: Topic) -> set[str]:
    """The names in a message under which a contract of the topic declares a field that is not marked.

    A name that is also the name of a marked field is left out.
    """
    public: set[str] = set()
    marked: set[str] = set()
    for contract in topic.contracts:
        sources = sources_of(contract) if issubclass(contract, ForeignContract) else {}
        for name, field in contract.model_fields.items():
            names = _names(sources.get(name), name)
            (marked if _is_personal(field) else public).update(names)
    return public - marked


def masked(topic: Topic, document: Any, name: str | None = None) -> Any:
    """A JSON document in which only public values are left.

    A dead letter breaks its contract: personal data may be under any name. So a value stays only under a name from
    `public_names`.

    Args:
        topic: The topic.
        document: The document, or a part of it.
        name: The name of the member that holds it.
    """
    return _masked(public_names(topic), document, name)


def _masked(public: set[str], document: Any, name: str | None) -> Any:
    if isinstance(document, dict):
        # A name that no contract knows may itself hold data.
        return {
            (key if key in public or len(key) <= 40 else MASK): _masked(public, value, key)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [_masked(public, value, name) for value in document]
    return document if document is None or name in public else MASK


def _names(source: Any, name: str) -> list[str]:
    if isinstance(source, At):
        return [source.names[-1]]
    return [source.name] if isinstance(source, FromHeader) else [name]


def _is_personal(field: Any) -> bool:
    return any(isinstance(each, Personal) or each is Personal for each in (*field.metadata, *_marks(field.annotation)))


def _marks(annotation: Any) -> Iterator[Any]:
    """Metadata within an annotation, as in `Annotated[str, Personal()] | None`."""
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks(part)
