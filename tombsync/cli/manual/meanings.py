"""What each key of the settings file is for. What it may be stands beside its type, in config.tables."""

# Field of Settings that holds the table ("" for the top) -> what the table is for, and its keys.
MEANINGS: dict[str, tuple[str, dict[str, str]]] = {
    "": (
        "",
        {
            "node": "The name of this node, in its records and at its peers. Default: the host name.",
            "root": "The segment tree, `ROOT/CHANNEL/QUALITY/HOUR/NAME`.",
            "state_dir": "Where the index is: a cache that can be deleted. Without a settings file the default is "
            "`$XDG_STATE_HOME/tombsync`.",
            "journal": "Where records go: `auto` means to journald where it runs and else to stderr, as one JSON line "
            "each; `stderr` means there in any case.",
        },
    ),
    "http": (
        "The read side, for Prometheus and for whoever looks after the service.",
        {"listen": "Where `/metrics`, `/healthz` and `/readyz` are."},
    ),
    "rescan": (
        "How often the tree is compared with the index, for what the watch has missed.",
        {
            "interval_s": "Seconds from one look at the directories whose mtime says that they changed to the next.",
            "full_interval_s": "Seconds from one look at every directory, whatever its mtime says, to the next.",
        },
    ),
    "inbox": (
        "The receiving side, which counts where there is a `[[sender]]`.",
        {
            "jail": "The directory that sshd locks the accounts of the senders into. It must be root's own, as all "
            "above it; `tombsync peer add` makes it.",
            "quota_per_hour": "How many tombstones are taken of one sender within an hour; more waits in its inbox.",
        },
    ),
    "breaker": (
        "Against a mistaken mass of marks, which would be at every node within a second.",
        {
            "most_per_minute": "More new tombstones than this within a minute are hidden here, and wait for `tombsync "
            "release` before any peer is told.",
        },
    ),
    "peers": (
        "A node that tombstones are delivered to. One table each.",
        {
            "host": "Where its sshd is. The only key without a default.",
            "name": "What it is called in commands, records and metrics. Default: the host.",
            "port": "The port of its sshd.",
            "user": "The account that it gave this node.",
            "key": "The private key of this node.",
            "known_hosts": "The file with its host key, in the form of `ssh_known_hosts`. A host that is not in it is "
            "refused.",
            "delivery": "`inbox`: into an inbox of its agent, by an account that can do nothing else. `tree`: right "
            "into its segment tree, which works with any SFTP server.",
            "path": "With `tree`: its segment tree, as the account there sees it; with `inbox`: the view of it in the "
            "jail.",
            "verify_interval_s": "Seconds after which what it has confirmed is asked for again, and delivered again "
            "where it is missing.",
        },
    ),
    "senders": (
        "A node that may deliver into an inbox here. `tombsync peer add` writes it.",
        {
            "name": "What it is called in commands, records and metrics.",
            "account": "Its account on this machine. Default: `tombsync-NAME`.",
        },
    ),
}
