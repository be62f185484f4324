"""The core schema of a pydantic model: how pydantic itself validates each field."""

from typing import Any


def core_schema(model: type) -> Any:
    """The core schema of a pydantic model, which determines how its values are validated.

    Args:
        model: A pydantic model.

    Raises:
        TypeError: This version of pydantic has its schemas in another form.
    """
    schema: Any = getattr(model, "__pydantic_core_schema__", None)
    if not isinstance(schema, dict) or "type" not in schema:
        raise TypeError(
            f"{model.__name__} has no core schema of the known form: see include/streams/compat/__init__.py"
        )
    return schema


def model_schema(model: type) -> tuple[Any, dict[str, Any]]:
    """The schema of the model itself, and the definitions that it refers to.

    Args:
        model: A pydantic model.

    Returns:
        (core schema, {reference: core schema}).

    Raises:
        TypeError: As for `core_schema`.
    """
    schema = core_schema(model)
    definitions: dict[str, Any] = {}
    if schema["type"] == "definitions":
        definitions = {item["ref"]: item for item in schema["definitions"]}
        schema = schema["schema"]
        while schema["type"] == "definition-ref":
            schema = definitions[schema["schema_ref"]]
    return schema, definitions
