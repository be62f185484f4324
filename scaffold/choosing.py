"""What a contract takes of the fields that samples have: the id, the key, the type, and the fields that are picked."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from include.streams.contracts import At, FromHeader
from scaffold.errors import Refused
from scaffold.guessing import Guess, agree, guess
from scaffold.names import Names, camel, field_name
from scaffold.observing import HEADER, Observed, as_text, observe, value_of
from scaffold.samples import FORMAT, Sample

# Without FIELDS, so many fields are picked of each type of message, besides id and key.
MAX_PICKED = 20
# Longer texts are not picked unless FIELDS names them.
MAX_TEXT = 500
# The most types of a union; the rarest others are not wanted.
MAX_TYPES = 12
_TYPE_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
# Names that an id has, the likeliest first. A header of such a name goes before a member.
_IDS = (
    re.compile(r"(event|message|delivery|record)[_-]?(id|uuid)|.*[_-]delivery|ce[_-]id|idempotency[_-]key"),
    re.compile(r"id|uuid|guid"),
    re.compile(r".*(id|uuid|guid|number)"),
)
_TIMES = re.compile(r"(occurred|created|happened|event|updated)?_?(at|time|timestamp|on|date)", re.IGNORECASE)


@dataclass(frozen=True)
class Wishes:
    """What the command line says.

    Attributes:
        id: `ID=`, the field that identifies a message.
        key: `KEY=`, the field that is the Kafka key.
        kind: `TYPE=`, the field that names a message's type.
        fields: `FIELDS=`, the fields to pick.
    """

    id: str | None = None
    key: str | None = None
    kind: str | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Field:
    """A field of a contract.

    Attributes:
        name: Its name in the contract.
        source: Where it comes from.
        guess: Its type.
        is_required: Whether every message has it.
        seen: In how many samples of how many it was.
    """

    name: str
    source: At | FromHeader
    guess: Guess
    is_required: bool
    seen: tuple[int, int]

    @property
    def has_own_name(self) -> bool:
        return isinstance(self.source, At) and self.source.names == (self.name,)

    @property
    def is_at_the_top(self) -> bool:
        return isinstance(self.source, At) and len(self.source.names) == 1


@dataclass(frozen=True)
class Picked:
    """A contract: its type of message (None without types), class name and fields; the first field is the id."""

    kind: str | None
    class_name: str
    fields: tuple[Field, ...]


@dataclass
class Choice:
    """All that is chosen.

    Attributes:
        by: Where a message names its type; None without types.
        contracts: The contracts.
        shared: The fields of a union that all its contracts have alike, the id among them; () without a union.
        id_field: The name of the id's field.
        key_field: The name of the key's field; None if nobody knows it.
        event_time: The name of the field with the time of the event; None without one.
        is_own: Whether it is a plain contract of one's own messages.
        samples: The samples that the contracts take.
        notes: What was chosen without being asked, for the person who runs the command.
    """

    by: At | FromHeader | None
    contracts: tuple[Picked, ...]
    shared: tuple[Field, ...]
    id_field: str
    key_field: str | None
    event_time: str | None
    is_own: bool
    samples: list[Sample]
    notes: list[str] = field(default_factory=list)


def choose(
    samples: Sequence[Sample], names: Names, wishes: Wishes, schemas: dict[str, dict[str, Any]] | None = None
) -> Choice:
    """Choose what the contracts of a topic hold.

    Args:
        samples: The samples.
        names: The topic's names.
        wishes: What the command line says.
        schemas: {field: what the JSON Schema says of it}, with a schema.

    Raises:
        Refused: The samples do not have what is needed; the text says what to do.
    """
    seen = observe(samples)
    notes: list[str] = []
    by = _named(seen, "TYPE", wishes.kind) if wishes.kind else None
    wanted, kinds = _by_type(samples, by, notes)
    is_own = by is None and not wishes.fields and _is_own(samples, seen, wishes)
    id_seen = _named(seen, "ID", wishes.id) if wishes.id else _id(wanted, seen, by, notes)
    _check_id(wanted, id_seen)
    key_seen = _named(seen, "KEY", wishes.key) if wishes.key else _key(wanted, seen, id_seen, is_own, notes)
    first = [found for found in dict.fromkeys((id_seen.name, key_seen.name if key_seen else id_seen.name))]
    rest = _picked(wanted, kinds, seen, first, wishes, is_own, notes)
    fields = _Fields(seen, schemas or {}, frozenset(first), is_own)
    contracts = tuple(
        Picked(kind, name, fields.of(of_kind, [*first, *rest[kind]]))
        for (kind, of_kind), name in zip(kinds.items(), _class_names(kinds, names), strict=True)
    )
    shared = fields.shared(contracts) if len(contracts) > 1 else ()
    contracts = tuple(_with_shared(contract, shared) for contract in contracts)
    for what, found in (("ID", id_seen), ("KEY", key_seen)):
        _check_required(what, found, contracts)
    return Choice(
        by=by.source if by else None,
        contracts=contracts,
        shared=shared,
        id_field=fields.names[id_seen.name],
        key_field=fields.names[key_seen.name] if key_seen else None,
        event_time=_event_time(contracts),
        is_own=is_own,
        samples=wanted,
        notes=notes,
    )


def _named(seen: dict[str, Observed], what: str, name: str) -> Observed:
    """The field that the command line names."""
    if name in seen:
        return seen[name]
    if name.startswith(HEADER):
        known = ", ".join(n.removeprefix(HEADER) for n in seen if n.startswith(HEADER)) or "none"
        raise Refused(f"{what}={name}: no sample has this header; they have: {known}. In a file, write {FORMAT}")
    near = difflib.get_close_matches(name, seen, 3, 0.5) or list(seen)[:8]
    raise Refused(f"{what}={name}: no sample has this field; did you mean {', '.join(near)}?")


def _by_type(
    samples: Sequence[Sample], by: Observed | None, notes: list[str]
) -> tuple[list[Sample], dict[str | None, list[Sample]]]:
    """The samples that are wanted, and {type: samples}."""
    if by is None:
        return list(samples), {None: list(samples)}
    found: dict[str | None, list[Sample]] = {}
    odd = 0
    for sample in samples:
        kind = value_of(sample, by.source)
        if isinstance(kind, str) and _TYPE_NAME.fullmatch(kind):
            found.setdefault(kind, []).append(sample)
        else:
            odd += 1
    if not found:
        raise Refused(f"TYPE={by.name}: in no sample is it a text of letters, digits and '_.:/-'; name another field")
    counts = Counter({kind: len(some) for kind, some in found.items()})
    dropped = [str(kind) for kind, _ in counts.most_common()[MAX_TYPES:]]
    if dropped:
        notes.append(f"types: the {MAX_TYPES} most frequent ones; not wanted: {', '.join(dropped)}")
    if odd:
        notes.append(f"types: {odd} samples without a type in {by.name} were left out")
    kinds = {kind: some for kind, some in found.items() if kind not in dropped}
    return [sample for some in kinds.values() for sample in some], kinds


def _is_own(samples: Sequence[Sample], seen: dict[str, Observed], wishes: Wishes) -> bool:
    """Whether the messages can have a plain contract: flat, with a version, and with id and key in the payload."""
    members = [found for found in seen.values() if isinstance(found.source, At)]
    versions = {
        sample.document.get("version")
        for sample in samples
        if not isinstance(sample.document.get("version"), dict | list)
    }
    return (
        all(found.is_scalar for found in members)
        and all(
            isinstance(found.source, At) and field_name(found.source, set()) == found.name
            for found in members
            if found.name != "version"
        )
        and len(versions) == 1
        and all(type(version) is int and version >= 1 for version in versions)
        and not any((wish or "").startswith(HEADER) for wish in (wishes.id, wishes.key))
    )


def _id(samples: Sequence[Sample], seen: dict[str, Observed], by: Observed | None, notes: list[str]) -> Observed:
    """The likeliest id: a field that every sample has, and no two samples the same."""
    ranks = {found.name: _rank(found) for found in seen.values() if found is not by and _may_identify(found, samples)}
    likely = [name for name, rank in sorted(ranks.items(), key=lambda item: item[1]) if rank[0] < math.inf]
    if likely:
        notes.append(f"id: {likely[0]}, which is different in all {len(samples)} samples; ID= names another")
        return seen[likely[0]]
    raise Refused(
        f"no field is named like an id and is different in all {len(samples)} samples: name one with ID=field or "
        "ID=header:name"
    )


def _rank(found: Observed) -> tuple[float, float, int]:
    """How likely a field is the id: nearest to the top first, then by its name; infinite if no id has such a name."""
    is_header = isinstance(found.source, FromHeader)
    name = found.source.name.lower() if isinstance(found.source, FromHeader) else found.source.names[-1].lower()
    patterns = _IDS[:1] if is_header else _IDS
    rank = next((number for number, pattern in enumerate(patterns) if pattern.fullmatch(name)), math.inf)
    return (math.inf if rank == math.inf or found.depth > 2 else found.depth, rank, found.order)


def _may_identify(found: Observed, samples: Sequence[Sample]) -> bool:
    values = [value_of(sample, found.source) for sample in samples]
    if found.others or not all(isinstance(v, str | int) and not isinstance(v, bool) and v != "" for v in values):
        return False
    return len(set(as_text(values))) == len(values) and all(len(text) <= 100 for text in as_text(values))


def _check_id(samples: Sequence[Sample], found: Observed) -> None:
    first: dict[str, tuple[int, Sample]] = {}
    for number, sample in enumerate(samples, start=1):
        value = value_of(sample, found.source)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise Refused(f"ID={found.name}: it is no text and no whole number in sample {number}; name another field")
        if not 1 <= len(str(value)) <= 250:
            raise Refused(
                f"ID={found.name}: it has {len(str(value))} characters in sample {number}; at most 250 are allowed"
            )
        other, earlier = first.setdefault(str(value), (number, sample))
        if earlier.document != sample.document:
            raise Refused(
                f"ID={found.name}: samples {other} and {number} have the same id and other content, so the second "
                "would be a conflict; name a field that is different in each message"
            )


def _key(
    samples: Sequence[Sample], seen: dict[str, Observed], id_seen: Observed, is_own: bool, notes: list[str]
) -> Observed | None:
    """The field that holds the samples' keys; for one's own messages, else the id."""
    keys = [sample.key for sample in samples]
    if all(key is not None for key in keys):
        for found in seen.values():
            values = [value_of(sample, found.source) for sample in samples]
            if all(isinstance(v, str | int) and str(v) == key for v, key in zip(values, keys, strict=True)):
                notes.append(f"key: {found.name}, which is the key of all {len(samples)} samples; KEY= names another")
                return found
    if is_own:
        notes.append(f"key: {id_seen.name}, the id; KEY= names another, such as the customer whose messages keep order")
        return id_seen
    return None


def _picked(
    samples: Sequence[Sample],
    kinds: dict[str | None, list[Sample]],
    seen: dict[str, Observed],
    first: list[str],
    wishes: Wishes,
    is_own: bool,
    notes: list[str],
) -> dict[str | None, list[str]]:
    """{type: names of the fields to pick}, without those that every contract has."""
    if wishes.fields:
        for name in wishes.fields:
            found = _named(seen, "FIELDS", name)
            if not found.is_scalar:
                what = (
                    " and ".join(sorted(found.others)) or "only null" if not found.values else "values of several types"
                )
                raise Refused(
                    f"FIELDS={name}: found {what} in the samples; name texts, numbers, true or false. For lists, see "
                    "docs/your-own-topic.md"
                )
        return {kind: _present(wishes.fields, some, seen, first) for kind, some in kinds.items()}
    if is_own:
        return {
            None: [
                name for name, found in seen.items() if isinstance(found.source, At) and name not in (*first, "version")
            ]
        }
    chosen = {kind: _sensible(some, seen, first) for kind, some in kinds.items()}
    for kind, (names, scalars) in chosen.items():
        of_kind = f" of {kind}" if kind else ""
        notes.append(
            f"fields{of_kind}: {len(names)} of {scalars} texts, numbers and booleans were picked, those nearest to the "
            "top; FIELDS= names others"
        )
    return {kind: names for kind, (names, _) in chosen.items()}


def _present(names: Iterable[str], samples: Sequence[Sample], seen: dict[str, Observed], first: list[str]) -> list[str]:
    found = [n for n in names if n not in first and any(value_of(s, seen[n].source) is not None for s in samples)]
    return list(dict.fromkeys(found))


def _sensible(samples: Sequence[Sample], seen: dict[str, Observed], first: list[str]) -> tuple[list[str], int]:
    """The fields that are picked without FIELDS, and how many there were to choose from."""
    scalars = []
    for name, found in seen.items():
        if name in first or not isinstance(found.source, At) or not found.is_scalar:
            continue
        values = [value for sample in samples if (value := value_of(sample, found.source)) is not None]
        if any(value != "" for value in values):
            scalars.append((name, found, len(values) == len(samples), max(map(len, as_text(values)))))
    # Few enough: also those that only some samples have.
    known = scalars if len(scalars) <= MAX_PICKED else [item for item in scalars if item[2]]
    short = [(name, found) for name, found, _, length in known if length <= MAX_TEXT]
    # Addresses last: a code host's webhook has a hundred of them.
    short.sort(key=lambda item: (item[0].endswith(("url", "href")), item[1].depth, item[1].order))
    chosen = sorted(short[:MAX_PICKED], key=lambda item: item[1].order)
    return [name for name, _ in chosen], len(scalars)


def _class_names(kinds: dict[str | None, list[Sample]], names: Names) -> list[str]:
    if list(kinds) == [None]:
        return [f"{names.class_prefix}Message"]
    found: list[str] = []
    for kind in kinds:
        name = f"{names.class_prefix}{camel(str(kind))}"
        found.append(name if name not in found else f"{name}{len(found)}")
    return found


class _Fields:
    """Makes the fields of contracts: a source has one name and one type in all of them, and bounds in each."""

    def __init__(
        self, seen: dict[str, Observed], schemas: dict[str, dict[str, Any]], first: frozenset[str], is_own: bool
    ) -> None:
        self.names: dict[str, str] = {}
        self._of_all: dict[str, Guess] = {}
        self._seen, self._schemas, self._first, self._is_own = seen, schemas, first, is_own

    def of(self, samples: Sequence[Sample], names: Sequence[str]) -> tuple[Field, ...]:
        """The fields, those without a default first."""
        found = [self._field(name, samples) for name in names]
        return tuple(sorted(found, key=lambda each: not each.is_required))

    def _field(self, name: str, samples: Sequence[Sample]) -> Field:
        seen = self._seen[name]
        if name not in self.names:
            self.names[name] = field_name(seen.source, set(self.names.values()))
        options = {"is_id": name in self._first, "schema": self._schemas.get(name)}
        of_all = guess(seen.values, **options)
        if of_all is None:
            raise Refused(
                f"{name}: its values fit no type of a contract; leave it out of FIELDS=, or name other fields"
            )
        self._of_all[self.names[name]] = of_all
        values = [value for sample in samples if (value := value_of(sample, seen.source)) is not None]
        # One type in all contracts, because they share a table; the bounds are those of this type of message.
        own = guess(values, name=of_all.name, **options) if values else None
        is_required = len(values) == len(samples) and not self._schemas.get(name, {}).get("nullable")
        return Field(self.names[name], seen.source, own or of_all, is_required, (len(values), len(samples)))

    def shared(self, contracts: Sequence[Picked]) -> tuple[Field, ...]:
        """The fields that all contracts have alike, with the guess over all of them, the required ones first."""
        found = []
        for first in contracts[0].fields:
            same = [each for contract in contracts for each in contract.fields if each.name == first.name]
            is_in_all = len(same) == len(contracts) and len({each.is_required for each in same}) == 1
            if is_in_all and agree([each.guess for each in same]):
                seen = (sum(each.seen[0] for each in same), sum(each.seen[1] for each in same))
                found.append(replace(first, guess=self._of_all[first.name], seen=seen))
        return tuple(found)


def _with_shared(contract: Picked, shared: Sequence[Field]) -> Picked:
    by_name = {each.name: each for each in shared}
    return replace(contract, fields=tuple(by_name.get(each.name, each) for each in contract.fields))


def _check_required(what: str, found: Observed | None, contracts: Sequence[Picked]) -> None:
    for contract in contracts:
        for each in contract.fields:
            if found is not None and each.source == found.source and not each.is_required:
                present, of = each.seen
                raise Refused(
                    f"{what}={found.name}: only {present} of {of} samples have it; name a field that all have"
                )
            if found is not None and each.source == found.source and each.guess.python not in ("str", "int"):
                raise Refused(f"{what}={found.name}: it is a {each.guess.name}; name a text or a whole number")


def _event_time(contracts: Sequence[Picked]) -> str | None:
    """The name of a required time at the top that all contracts have; the likeliest one."""
    common: dict[str, int] = Counter(
        each.name
        for contract in contracts
        for each in contract.fields
        if each.guess.name == "UtcTime"
        and each.is_required
        and isinstance(each.source, At)
        and len(each.source.names) == 1
    )
    found = [name for name, count in common.items() if count == len(contracts)]
    return next(iter(sorted(found, key=lambda name: not _TIMES.fullmatch(name))), None)
