"""The state of a project for an operator: consumers, landed topics, Dag runs, alarms.

`gathering` queries the services and returns plain data (`facts`), for `make look` and for pages. `text` prints the data
in a terminal.
"""
