"""The example: a water utility. Replace this package when you use the project for something else."""
