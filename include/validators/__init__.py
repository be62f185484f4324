"""Checks of what has landed: row by row against the contract, and whole sets of rows against a suite of rules."""
