"""An agent of a later version takes up what an earlier one left, and what happened in between."""

from __future__ import annotations

from pathlib import Path

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.index import database, query
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.index import index_path

HOUR = "desertbus/source/2019-11-13T02"
STEMS = [segment_stem(2 * number) for number in range(4)]


def test_an_index_of_before_is_taken_up_and_nothing_is_told_twice_or_missed(peers: list[Sshd], tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, peers=[peer_table(f"node-{number}", server) for number, server in enumerate(peers)])
    make_hour(agent.root, segments=10)
    everywhere = {f"node-{number}": "confirmed" for number in range(len(peers))}

    def delivered(*stems: str) -> bool:
        return all(agent.states(f"{HOUR}/{stem}") == everywhere for stem in stems)

    with agent:
        for stem in STEMS[:2]:
            touch(agent.root / HOUR, stem)
        wait_for(lambda: delivered(*STEMS[:2]), "the first two to be everywhere")
        assert agent.stop() == 0
        path = index_path(str(agent.state_dir))
        with database(path) as index:  # as an agent of version 3 had it
            index.execute("DELETE FROM meta WHERE key = 'told_up_to'")
            index.execute("ALTER TABLE marker DROP COLUMN told_up_to")
            index.execute("ALTER TABLE peer DROP COLUMN marker_seen")
            index.execute("DROP TRIGGER hour_goes")
            index.execute("DROP TABLE coverage")
            index.execute("PRAGMA user_version = 3")
        touch(agent.root / HOUR, STEMS[2])
        assert "is that of an older tombsync" in agent.run("tombstones", expect=1).stderr
        agent.start()
        touch(agent.root / HOUR, STEMS[3])
        wait_for(lambda: delivered(*STEMS), "all to be everywhere")
        assert agent.stop() == 0
        told = [record["TOMBSYNC_SEGMENT"] for record in agent.records("hidden")]
        assert sorted(told) == sorted(f"{HOUR}/{stem}" for stem in STEMS)
        assert agent.records("index-set-aside") == []
        assert query(path, "SELECT count(*) FROM peer WHERE marker_seen") == [(0,)]  # no agent runs there
