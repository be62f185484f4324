"""Checks of landed rows: each row against its contract, and whole sets of rows against a suite of rules."""
