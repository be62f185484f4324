"""The only error that the stack raises."""


class StackError(Exception):
    """One line that says what is wrong, and what to do."""
