"""Hourly flows and nights out of counter readings: SQL in files, and what runs it."""
