"""alarms: what an alarm is about within its source is a column of its own, the key

Until now it was written behind the kind (`suite_failed:7`), and for a failed task behind the source
(`dag.task[3]@key`).
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0013"
down_revision = "operations_0012"
branch_labels = None
depends_on = None

IS_OPEN = sa.text("closed_at is null")
# The source of a failed task is `dag.task`, then perhaps `[map index]`, then perhaps `@partition key`.
TASK = r"^([^\[@]*)(?:\[(\d+)\])?(?:@(.*))?$"


def upgrade() -> None:
    op.add_column("alarms", sa.Column("key", sa.Text, server_default="", nullable=False))
    op.drop_index("uq_alarms_open", "alarms")
    op.execute(
        """
        update alarms set kind = split_part(kind, ':', 1), key = substring(kind, ':(.*)$') where strpos(kind, ':') > 0
        """
    )
    op.execute(
        f"""
        update alarms set source = part[1], key = concat_ws(',', part[3], 'map_index=' || part[2])
        from (select id as task, regexp_match(source, '{TASK}') as part from alarms where kind = 'dag_failed') as tasks
        where id = task and (part[2] is not null or part[3] is not null)
        """
    )
    op.create_index("uq_alarms_open", "alarms", ["source", "kind", "key"], unique=True, postgresql_where=IS_OPEN)


def downgrade() -> None:
    op.drop_index("uq_alarms_open", "alarms")
    op.execute(
        r"""
        update alarms set source = concat(
            source, '[' || substring(key, 'map_index=(\d+)$') || ']',
            '@' || nullif(regexp_replace(key, ',?map_index=\d+$', ''), '')
        ) where kind = 'dag_failed' and key <> ''
        """
    )
    op.execute("update alarms set kind = kind || ':' || key where kind <> 'dag_failed' and key <> ''")
    op.create_index("uq_alarms_open", "alarms", ["source", "kind"], unique=True, postgresql_where=IS_OPEN)
    op.drop_column("alarms", "key")
