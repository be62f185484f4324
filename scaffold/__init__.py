"""Development tools that write and remove code: `make topic`, `make revision` and `make remove-example`.

Nothing of it is deployed. What it writes belongs to the project, and imports nothing from here.
"""
