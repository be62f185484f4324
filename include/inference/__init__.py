"""Agents that propose and never act: model connection, limits, redaction, embeddings, approvals bound to proposals."""
