"""The one exception of this tool."""


class Refused(Exception):
    """Nothing was written; the text says why, and what to do."""
