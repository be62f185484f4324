"""Benchmarks and fault tests, each on a separate local stack: `make bench-events`, `make faults`, ..."""
