"""Alembic's entry point: runs the revisions on the connection that `include.streams.operations.migrate` opened."""

from alembic import context

from include.streams.operations.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    on_version_apply=context.config.attributes["on_version_apply"],
    target_metadata=metadata,
)
context.run_migrations()
