"""JSON texts with a schema's id. The contract judges them; the registered schema describes them for other programs."""

from __future__ import annotations

import json
from typing import Any

from include.streams.formats.codec import Codec, Writer
from include.streams.formats.errors import NotDecodable
from include.streams.formats.registry import SchemaText

DIALECT = "http://json-schema.org/draft-07/schema#"


class JsonSchemaCodec(Codec):
    """The codec of a topic in JSON Schema."""

    def _writer(self, schema: SchemaText) -> Writer:
        try:
            document = json.loads(schema.text)
        except ValueError:
            raise NotDecodable("foreign_schema", "the registry's schema is no JSON") from None
        return _Writer(document.get("title") if isinstance(document, dict) else None)

    def derive(self, contract: Any) -> str:
        # Draft 7: registries know no newer one. Apicurio fails with an error when it compares schemas of 2020-12.
        schema = {"$schema": DIALECT, **contract.model_json_schema()}
        schema["title"] = ".".join(filter(None, (self.declared.namespace, contract.__name__)))
        return json.dumps(schema, sort_keys=True)


class _Writer:
    def __init__(self, title: str | None) -> None:
        self._title = title

    def decode(self, payload: bytes, indexes: tuple[int, ...]) -> bytes:
        return payload

    def encode(self, document: Any) -> tuple[bytes, tuple[int, ...]]:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(), ()

    def records(self) -> tuple[str, ...]:
        return (self._title,) if self._title else ()
