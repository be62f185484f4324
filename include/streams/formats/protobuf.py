"""Protocol Buffers: values to JSON texts and back.

The JSON text of a message: its set fields by their names in the schema; a field without presence always. Whole numbers
are numbers (protobuf's own JSON has texts for those of 64 bits). An enum is the name of its value, or its number if the
schema has no name for it. Bytes are base64. A Timestamp is ISO 8601 in UTC, to the microsecond, and a Duration an ISO
8601 duration; wrappers, Struct and Value are their values; `confluent.type.Decimal` and `google.type.Decimal` are
texts. An Any is {"@type": url, "value": base64}.
"""

from __future__ import annotations

import base64
import importlib
import importlib.resources
import math
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from include.streams.formats.codec import Codec, Writer
from include.streams.formats.errors import NotDecodable, NotEncodable
from include.streams.formats.proto_schema import proto_schema
from include.streams.formats.registry import SchemaText

_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAIN = "main.proto"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Convert = Callable[[Any], Any]


class ProtobufCodec(Codec):
    """The codec of a topic in Protobuf."""

    has_indexes = True

    def _writer(self, schema: SchemaText) -> Writer:
        own = None if schema is self.own else self.own_writer
        reader = own if isinstance(own, ProtobufWriter) else None
        return ProtobufWriter(compiled(schema), reader, self.declared.records)

    def derive(self, contract: Any) -> str:
        return proto_schema(contract, self.declared.namespace)


class ProtobufWriter:
    """Reads and writes the messages of one file.

    Args:
        file: The descriptor of the file.
        reader: The topic's own schema, whose field names and types count; None for the file's.
        records: The messages that the topic may hold; empty for any of the file, or the first one of the reader.
    """

    def __init__(self, file: Any, reader: ProtobufWriter | None = None, records: tuple[str, ...] = ()) -> None:
        self._file = file
        self._reader = reader
        self._records = records
        # {path of a message's type: (class, converter to JSON)}
        self._types: dict[tuple[int, ...], tuple[Any, Convert]] = {}

    def decode(self, payload: bytes, indexes: tuple[int, ...] = (0,)) -> bytes:
        from pydantic_core import to_json

        make, convert = self._type(indexes)
        message = self._parsed(make, payload)
        if self._reader is not None:
            # Fields that the topic's schema does not have are dropped; renamed fields get its names.
            make, convert = self._reader.type_named(message.DESCRIPTOR.name)
            message = make.FromString(payload)
        try:
            return to_json(convert(message), inf_nan_mode="strings")
        except Exception as error:
            raise NotDecodable("not_decodable", f"the value has no JSON text ({type(error).__name__})") from None

    @staticmethod
    def _parsed(make: Any, payload: bytes) -> Any:
        from google.protobuf.message import DecodeError

        try:
            message = make.FromString(payload)
        except (DecodeError, UnicodeDecodeError):
            raise NotDecodable("not_decodable", "the bytes do not fit the schema") from None
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size:
            # Protobuf itself skips fields that the schema does not have: the bytes of another message would pass.
            raise NotDecodable("not_decodable", "the bytes hold fields that the schema does not have")
        return message

    def encode(self, document: Any) -> tuple[bytes, tuple[int, ...]]:
        indexes = self._first_wanted()
        make, _ = self._type(indexes)
        message = make()
        _fill(message, document, "")
        return message.SerializeToString(deterministic=True), indexes

    def records(self) -> tuple[str, ...]:
        return tuple(descriptor.full_name for _, descriptor in self._messages())

    def type_named(self, name: str) -> tuple[Any, Convert]:
        """The class and the converter of the message of this name; the first message if none has it."""
        for indexes, descriptor in self._messages():
            if descriptor.name == name:
                return self._type(indexes)
        return self._type((0,))

    def _first_wanted(self) -> tuple[int, ...]:
        for indexes, descriptor in self._messages():
            if not self._records or descriptor.full_name in self._records:
                return indexes
        raise NotEncodable(f"the schema has no message {' or '.join(self._records)}")

    def _messages(self) -> Iterator[tuple[tuple[int, ...], Any]]:
        """(path, descriptor) of all messages of the file: those at its top first, in their order."""
        level = [((number,), each) for number, each in enumerate(self._file.message_types_by_name.values())]
        while level:
            yield from level
            level = [
                ((*indexes, number), nested)
                for indexes, each in level
                for number, nested in enumerate(each.nested_types)
            ]

    def _type(self, indexes: tuple[int, ...]) -> tuple[Any, Convert]:
        if (known := self._types.get(indexes)) is not None:
            return known
        from google.protobuf.message_factory import GetMessageClass

        descriptor = next((each for path, each in self._messages() if path == indexes), None)
        if descriptor is None:
            raise NotDecodable("not_decodable", "the schema has no message of the number after its id")
        if self._records and descriptor.full_name not in self._records:
            raise NotDecodable("foreign_schema", f"the message {descriptor.full_name} is none of the topic's")
        made = (GetMessageClass(descriptor), _converter(descriptor, {}))
        self._types[indexes] = made
        return made


def compiled(schema: SchemaText) -> Any:
    """The descriptor of a schema's file; raises NotDecodable if it cannot be used."""
    from google.protobuf.descriptor_pool import DescriptorPool

    try:
        files = _files(schema)
        pool = DescriptorPool()
        for file in files:
            pool.AddSerializedFile(file.SerializeToString())
        return pool.FindFileByName(files[-1].name)
    except NotDecodable:
        raise
    except Exception as error:
        raise NotDecodable("foreign_schema", f"the schema cannot be used ({type(error).__name__})") from None


def _files(schema: SchemaText) -> list[Any]:
    """The file of a schema after those that it imports."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

    texts: dict[str, str] = {}
    binaries: dict[str, Any] = {}

    def collect(name: str, each: SchemaText) -> None:
        for imported, reference in each.references:
            collect(imported, reference)
        if (file := _from_base64(each.text, name)) is not None:
            binaries[name] = file
        else:
            texts[name] = each.text

    collect(_MAIN, schema)
    if _MAIN in binaries:
        ordered: dict[str, Any] = {}
        _with_imports(binaries[_MAIN], binaries, ordered)
        return list(ordered.values())
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            path = (Path(folder) / name).resolve()
            if not path.is_relative_to(Path(folder).resolve()):
                raise NotDecodable("foreign_schema", "an imported file has an impossible name")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        output = Path(folder) / ".descriptors"
        if _protoc(folder, output):
            raise NotDecodable("foreign_schema", "the schema is no Protobuf file that can be compiled")
        found = FileDescriptorSet.FromString(output.read_bytes())
    files: list[FileDescriptorProto] = list(found.file)
    return files


def _protoc(folder: str, output: Path) -> int:
    """Compile the main file; returns the compiler's exit code. Its errors are in the task's log."""
    import google.type
    from grpc_tools import protoc

    # protobuf's own files, and those of google/type.
    common = Path(next(iter(google.type.__path__))).parents[1]
    paths = (folder, importlib.resources.files("grpc_tools") / "_proto", common)
    options = [f"--proto_path={path}" for path in paths]
    return protoc.main(["protoc", *options, "--include_imports", f"--descriptor_set_out={output}", _MAIN])


def _from_base64(text: str, name: str) -> Any:
    """The file in a text of base64, as some serializers register it; None if it is source."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    try:
        content = base64.b64decode(text, validate=True)
        file = FileDescriptorProto.FromString(content)
    except Exception:
        return None
    file.name = name
    return file


def _with_imports(file: Any, known: dict[str, Any], ordered: dict[str, Any]) -> None:
    """Add a file to `ordered` after its imports; those that the schema does not bring are the libraries' own."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    for name in file.dependency:
        if name in ordered:
            continue
        imported = known.get(name)
        if imported is None:
            _import_own(name)
            imported = descriptor_pb2.FileDescriptorProto()
            descriptor_pool.Default().FindFileByName(name).CopyToProto(imported)
        _with_imports(imported, known, ordered)
    ordered[file.name] = file


def _import_own(name: str) -> None:
    """Load a file of protobuf's, Google's or Confluent's common types into the default pool."""
    if name.startswith("confluent/"):
        import confluent_kafka.schema_registry.protobuf  # noqa: F401
    elif name.startswith(("google/protobuf/", "google/type/")):
        importlib.import_module(f"{name.removesuffix('.proto').replace('/', '.')}_pb2")


def _converter(descriptor: Any, known: dict[str, Convert]) -> Convert:
    """A function that returns the JSON value of a message of this type."""
    name = descriptor.full_name
    if (special := _TO_JSON.get(name)) is not None:
        return special
    if name in known:
        return lambda message: known[name](message)
    known[name] = lambda message: convert(message)
    # (name, whether it may be unset, function or None)
    fields = [(field.name, field.has_presence, _field_converter(field, known)) for field in descriptor.fields]

    def convert(message: Any) -> dict[str, Any]:
        document = {}
        for field_name, has_presence, function in fields:
            if has_presence and not message.HasField(field_name):
                continue
            value = getattr(message, field_name)
            document[field_name] = value if function is None else function(value)
        return document

    known[name] = convert
    return convert


def _field_converter(field: Any, known: dict[str, Convert]) -> Convert | None:
    if _is_map(field):
        inner = _single_converter(field.message_type.fields_by_name["value"], known)
        if inner is None:
            return lambda values: {_key(key): value for key, value in values.items()}
        # By key: a map of messages has no useful `values`.
        return lambda values: {_key(key): inner(values[key]) for key in values}
    inner = _single_converter(field, known)
    if field.is_repeated:
        return list if inner is None else (lambda values: [inner(value) for value in values])
    return inner


def _single_converter(field: Any, known: dict[str, Convert]) -> Convert | None:
    if field.message_type is not None:
        return _converter(field.message_type, known)
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    if field.type == field.TYPE_BYTES:
        return _base64
    return None


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _timestamp(message: Any) -> datetime:
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1_000)


def _duration(message: Any) -> timedelta:
    return timedelta(seconds=message.seconds, microseconds=message.nanos / 1_000)


def _value_of(message: Any) -> Any:
    return message.value


def _json_of(message: Any) -> Any:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message)


def _confluent_decimal(message: Any) -> str:
    number = Decimal(int.from_bytes(message.value, "big", signed=True)).scaleb(-message.scale)
    return format(number, "f")


_TO_JSON: dict[str, Convert] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.Struct": _json_of,
    "google.protobuf.Value": _json_of,
    "google.protobuf.ListValue": _json_of,
    "google.protobuf.FieldMask": _json_of,
    "google.protobuf.Any": lambda message: {"@type": message.type_url, "value": _base64(message.value)},
    "google.protobuf.BytesValue": lambda message: _base64(message.value),
    "google.type.Decimal": _value_of,
    "confluent.type.Decimal": _confluent_decimal,
    **{
        f"google.protobuf.{kind}Value": _value_of
        for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String")
    },
}


def _fill(message: Any, document: Any, path: str) -> None:
    """Set the fields of a message from a JSON value; raises NotEncodable with the field's path."""
    try:
        if (special := _FROM_JSON.get(message.DESCRIPTOR.full_name)) is not None:
            special(message, document)
            return
        if not isinstance(document, dict):
            raise ValueError
    except NotEncodable:
        raise
    except Exception:
        raise NotEncodable(f"{path.lstrip('.') or '(message)'}: is no {message.DESCRIPTOR.full_name}") from None
    fields = message.DESCRIPTOR.fields_by_name
    if unknown := [name for name in document if name not in fields]:
        raise NotEncodable(f"{path.lstrip('.') or '(message)'}: {len(unknown)} fields are not in the schema")
    for name, value in document.items():
        if value is None and not _takes_null(fields[name]):
            continue
        here = f"{path}.{name}"
        try:
            _set(message, fields[name], value, here)
        except NotEncodable:
            raise
        except Exception:
            raise NotEncodable(f"{here.lstrip('.')}: does not fit the schema") from None


def _takes_null(field: Any) -> bool:
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"


def _set(message: Any, field: Any, value: Any, path: str) -> None:
    if _is_map(field):
        target = getattr(message, field.name)
        keys, values = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        for text, item in value.items():
            key = _scalar_key(text, keys)
            if values.message_type is not None:
                _fill(target[key], item, f"{path}.*")
            else:
                target[key] = _scalar(item, values)
        return
    if field.is_repeated:
        if not isinstance(value, list):
            raise ValueError
        target = getattr(message, field.name)
        for item in value:
            if field.message_type is not None:
                _fill(target.add(), item, f"{path}[]")
            else:
                target.append(_scalar(item, field))
        return
    if field.message_type is not None:
        target = getattr(message, field.name)
        target.SetInParent()
        _fill(target, value, path)
        return
    setattr(message, field.name, _scalar(value, field))


def _scalar_key(text: str, field: Any) -> Any:
    if field.type == field.TYPE_STRING:
        return text
    return {"true": True, "false": False}[text] if field.type == field.TYPE_BOOL else int(text)


def _scalar(value: Any, field: Any) -> Any:
    if field.enum_type is not None:
        return value if type(value) is int else field.enum_type.values_by_name[value].number
    if field.type == field.TYPE_BYTES:
        return base64.b64decode(value, validate=True)
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT) and isinstance(value, str):
        return _FLOATS[value]
    is_flag = field.type == field.TYPE_BOOL
    if isinstance(value, bool) != is_flag:
        raise ValueError
    return value


def _set_timestamp(message: Any, document: Any) -> None:
    moment = datetime.fromisoformat(document)
    if moment.tzinfo is None:
        raise ValueError
    message.FromDatetime(moment.astimezone(UTC).replace(tzinfo=None))


def _set_duration(message: Any, document: Any) -> None:
    from pydantic import TypeAdapter

    message.FromTimedelta(TypeAdapter(timedelta).validate_python(document))


def _set_value(message: Any, document: Any) -> None:
    message.value = _scalar(document, message.DESCRIPTOR.fields_by_name["value"])


def _set_json(message: Any, document: Any) -> None:
    from google.protobuf.json_format import ParseDict

    ParseDict(document, message)


def _set_any(message: Any, document: Any) -> None:
    message.type_url, message.value = document["@type"], base64.b64decode(document["value"], validate=True)


def _set_confluent_decimal(message: Any, document: Any) -> None:
    sign, digits, exponent = Decimal(document).as_tuple()
    number = int("".join(map(str, digits))) * (-1 if sign else 1)
    scale = -int(exponent)
    if scale < 0:
        number, scale = number * 10**-scale, 0
    message.value = number.to_bytes((number.bit_length() + 8) // 8, "big", signed=True)
    message.precision, message.scale = len(digits), scale


_FROM_JSON: dict[str, Callable[[Any, Any], None]] = {
    "google.protobuf.Timestamp": _set_timestamp,
    "google.protobuf.Duration": _set_duration,
    "google.protobuf.Struct": _set_json,
    "google.protobuf.Value": _set_json,
    "google.protobuf.ListValue": _set_json,
    "google.protobuf.FieldMask": _set_json,
    "google.protobuf.Any": _set_any,
    "google.type.Decimal": _set_value,
    "confluent.type.Decimal": _set_confluent_decimal,
    **{
        f"google.protobuf.{kind}Value": _set_value
        for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
    },
}
