"""The only error that the stack raises."""


class StackError(Exception):
    """One line: what is wrong, and what to do about it."""
