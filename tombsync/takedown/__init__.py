"""Takedown by time: which files carry a moment, what hiding them costs, and which instants have several versions.

`look` reads the directories of the hours concerned, `find`, `cost` and `versions` decide, purely; who marks is the
command line. What counts is the tree: no index is asked for what stands in it. Nothing is imported here, so that the
command line need not wait for what only the agent needs.
"""
