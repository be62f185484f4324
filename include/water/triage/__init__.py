"""Triage of customers' requests: an engine proposes, code decides what may happen, a person approves risky actions."""
