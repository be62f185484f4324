"""Agents that propose but never act: model connection, limits, redaction, embeddings, approvals bound to proposals."""
