"""Leaks from the night flows: features, a model that learns from confirmed leaks, and the messages about leaks."""
