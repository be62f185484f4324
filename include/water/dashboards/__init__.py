"""Dashboards for people: the live board of the network, and the executive report."""
