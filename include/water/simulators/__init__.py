"""Simulators of the data sources: the seismic feed, the customers, the meters, the nightly leak detection.

Run `python -m include.water.simulators --help` for the commands.
"""
