"""The fields of a pydantic model as pydantic itself reads them."""

from typing import Any


def core_schema(model: type) -> Any:
    """The core schema of a pydantic model: what decides how its values are read.

    Args:
        model: A pydantic model.

    Raises:
        TypeError: This version of pydantic keeps its schemas in another form.
    """
    schema: Any = getattr(model, "__pydantic_core_schema__", None)
    if not isinstance(schema, dict) or "type" not in schema:
        raise TypeError(
            f"{model.__name__} has no core schema of the known form: see include/streams/compat/__init__.py"
        )
    return schema
