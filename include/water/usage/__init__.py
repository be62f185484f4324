"""Customers' daily usage, compared with similar households: a table for analysts, an object per customer for the app.

Usage is personal data: it shows when somebody is at home. There are ids but no names, and no usage goes to logs or
XComs. A household is compared only with a group in which no single household can be recognized. A customer who moves
into a home does not see the usage of earlier customers.
"""
