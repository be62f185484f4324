"""The executive report: what flowed in, what was lost and where, on one static page.

`collect` reads, `render` writes, `publish` puts it into the bucket; the three meet in `ReportData` only.
"""
