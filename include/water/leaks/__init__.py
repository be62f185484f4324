"""Leaks from the flows of the nights: features, a model that learns from confirmed leaks, and what is told of them."""
