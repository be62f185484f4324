"""Stand-ins for the sources: the seismic feed, the customers, the meters, the nightly leak detection.

Run as `python -m include.water.simulators`; `--help` says what there is.
"""
