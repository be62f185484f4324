"""The example: a water utility. The one package to replace when the project is used for something else."""
