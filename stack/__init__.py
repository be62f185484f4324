"""The local stack: Kafka, PostgreSQL, an object store and Airflow as real processes on loopback, without Docker."""

from stack.errors import StackError
from stack.stack import Stack

__all__ = ["Stack", "StackError"]
