"""The whole way on real video: two nodes hold the same hour, one second of it must go."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from tests.support.agent import AgentProcess, peer_table
from tests.support.media import cut, digests
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.names import Hour, hour_number


def test_a_marked_segment_of_real_video_is_hidden_on_both_nodes_and_its_data_untouched(tmp_path: Path) -> None:
    hour = Hour("desertbus", "source", hour_number("2019-11-13T02"))
    with Sshd() as server:
        node_a = AgentProcess(tmp_path / "a", node="node-a", peers=[peer_table("node-b", server)])
        node_b = AgentProcess(tmp_path / "b", node="node-b", root=Path(server.root))
        stems = cut(node_a.root, hour, seconds=20, scratch=tmp_path / "scratch")
        cut(node_a.root, hour._replace(quality="160p"), seconds=20, scratch=tmp_path / "scratch")
        shutil.copytree(node_a.root, node_b.root, dirs_exist_ok=True)
        before = {node.node: digests(node.root) for node in (node_a, node_b)}
        assert len(stems) == 10 and len(before["node-a"]) == 20
        with node_a, node_b:
            wait_for(lambda: node_a.metric("peer_up", peer="node-b") == 1)
            path = f"{hour.path}/{stems[3]}"
            done = node_a.run("mark", f"{path}.ts", "--reason", "shows a face", "--json")
            (marked,) = json.loads(done.stdout)
            assert marked["outcome"] == "marked" and marked["hides"] == [f"{stems[3]}.ts"]
            for node in (node_a, node_b):
                wait_for(partial(node.hidden, path), f"{node.node} to hide it")
                listed = node.listing(hour)
                assert f"{stems[3]}.ts" not in listed
                assert listed == sorted(f"{stem}.ts" for stem in stems if stem != stems[3])
                assert len(node.listing(hour._replace(quality="160p"))) == 10
            wait_for(lambda: node_a.states(path) == {"node-b": "confirmed"})
            assert (node_b.root / f"{path}.tombstone").stat().st_size == 0
            assert {node.node: digests(node.root) for node in (node_a, node_b)} == before
            (hidden,) = node_a.records("hidden")
            assert hidden["TOMBSYNC_SEGMENT"] == path and hidden["TOMBSYNC_SOURCE"] == "watch"
            (delivered,) = wait_for(lambda: node_a.records("delivered"))
            assert delivered["TOMBSYNC_PEER"] == "node-b"
            assert float(hidden["TOMBSYNC_ELAPSED_MS"]) > 0 and float(delivered["TOMBSYNC_ELAPSED_MS"]) > 0
