"""Hourly and nightly flows from counter readings: SQL files, and the code that runs them."""
