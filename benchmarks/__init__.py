"""Commands that measure, each on a local stack of its own: `make bench-events`, `make faults`."""
