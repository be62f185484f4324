"""The executive report: inflow, losses by district, leaks and data quality, on one static page.

`collect` reads the data, `render` writes the page, `publish` puts it into the bucket. They share only `ReportData`.
"""
