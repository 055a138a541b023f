"""Figures: each module is a command that prints them with a ratio to a limit measured in the same run."""
