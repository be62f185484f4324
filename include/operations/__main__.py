"""`python -m include.operations upgrade`: migrate the operational database behind the connection operations_db."""

import argparse
import logging
import sys

from include.operations.database import CONN_ID


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m include.operations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="apply the migrations that are missing; harmless to run again")
    parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    from airflow.sdk.exceptions import AirflowNotFoundException
    from sqlalchemy.exc import OperationalError

    from include.operations.migrate import upgrade

    try:
        applied = upgrade()
    except (AirflowNotFoundException, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OperationalError as error:
        # The driver's text: SQLAlchemy's adds lines about itself.
        sys.stderr.write(f"connection {CONN_ID}: {' '.join(str(error.orig).split())}\n")
        return 1
    sys.stdout.write("\n".join(applied) + "\n" if applied else "nothing to do: the database is up to date\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
