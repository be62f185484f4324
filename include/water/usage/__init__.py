"""What each customer used, day by day, beside like households: a table for analysts, an object each for the app.

Usage is personal data: it shows when somebody is at home. There are ids and no names, nothing of it goes to logs or
XComs, a household is compared only with a group in which nobody can be made out, and who moves into a home does not
see what was used before.
"""
