"""What an operator sees of a project: consumers, landed topics, Dag runs, alarms.

`gathering` asks the services and returns plain data (`facts`), for `make look` and for pages. `text` shows the data in
a terminal.
"""
