"""The executive report: what flowed in, what was lost and where, on one static page.

`collect` reads the data, `render` writes the page, `publish` puts it into the bucket. They share only `ReportData`.
"""
