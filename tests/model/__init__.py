"""A model of several nodes: the agent's real parts, driven turn by turn in one thread by Hypothesis.

Real: the index (SQLite files), `plan`, `names`, `Tree` on small directories in memory, the watcher's emitter and
handler, `Rescan` with its `HourVisitor`, `Intake`, `Pusher`, `Checkpointer`, the start of an agent. Simulated: the
clocks of each node, the kernel's inotify, the network with its SFTP servers, the archive and the people who work in the
trees, threads and their waits (a turn never waits), and the journal. `simulated.py` is the one place where modules are
changed for it.
"""
