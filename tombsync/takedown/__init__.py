"""Takedowns: by time, and what arrives after one.

`look` reads the directories of the hours concerned; `find`, `cost` and `versions` decide, purely, which files carry a
moment, what hiding them costs, and which instants have several versions; who marks is the command line. `late` and
`under` decide what of that which arrives falls under a takedown, and `worker` does what follows, in the agent. Nothing
is imported here, so that the command line need not wait for what only the agent needs.
"""
