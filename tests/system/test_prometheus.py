"""Alert rules, recording rules and the dashboard: on Prometheus' own tool, and against what a live agent exports."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.agent import make_hour, segment_stem, touch
from tests.support.inbox import ReceivingNode
from tests.support.programs import need
from tests.support.relay import free_port
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
TOP = Path(__file__).parents[2]
PROMETHEUS = TOP / "systemd" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((TOP / "systemd" / "grafana" / "tombsync.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for name in ("tombsync-alerts.yml", "tombsync-fleet.yml")
    for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
OF_PROMETHEUS = {"up", "ALERTS"}  # series of its own
_QUOTED = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"(?:\w+:)?(?:tombsync|process)_\w+(?::\w+)?|\b(?:up|ALERTS)\b")


def queries() -> dict[str, str]:
    """Every query of the dashboard, by where it stands."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert match
            found[f"variable {variable['name']}"] = match[1]
    for annotation in DASHBOARD["annotations"]["list"]:
        found[f"annotation {annotation['name']}"] = annotation["expr"]
    return found


def metrics_in(query: str) -> set[str]:
    """The names of the metrics in a query."""
    return set(_METRIC.findall(_QUOTED.sub("", query)))


def promtool(*words: str | Path, stdin: str = "") -> None:
    """Run it; it must have nothing to say against it."""
    done = subprocess.run([need("promtool"), *map(str, words)], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "FAILED" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def scrape() -> Iterator[str]:
    """What an agent exports to which everything has happened that makes a series."""
    with ExitStack() as stack:
        a, b = ReceivingNode(stack, "node-a", ["node-b"]), ReceivingNode(stack, "node-b", ["node-a"])
        away = re.sub(r"port = \d+", f"port = {free_port()}", b.table_for("node-a")).replace("node-b", "node-c")
        a.peers = [b.table_for("node-a"), away]
        b.peers = [a.table_for("node-b")]
        for node in (a, b):
            make_hour(node.root, HOUR)
            node.write_settings()
            node.agent.start()
        touch(a.root / HOUR, segment_stem(0))
        (a.root / HOUR / "a\nb.tombstone").touch()
        agent = a.agent
        wait_for(lambda: agent.metric("deliveries", peer="node-b", state="confirmed") == 1, "the confirmation")
        wait_for(lambda: agent.metric("push_failures_total", peer="node-c") > 0, "a failure of the other peer")
        wait_for(lambda: agent.metric("rejected_total") > 0, "the odd name")
        wait_for(lambda: agent.metric("coverage_seconds", state="hole") > 0, "the coverage of its hour")
        wait_for(lambda: 'push_seconds_count{peer="node-b"} 1.0' in agent.get("/metrics")[1], "the observation")
        yield agent.get("/metrics")[1]


@pytest.fixture(scope="module")
def exported(scrape: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(scrape) for sample in family.samples}


def test_a_scrape_is_clean(scrape: str) -> None:
    promtool("check", "metrics", stdin=scrape)


@pytest.mark.parametrize("where", queries())
def test_a_query_of_the_dashboard_names_what_an_agent_exports(where: str, exported: set[str]) -> None:
    named = metrics_in(queries()[where])
    assert named
    assert named <= exported | OF_PROMETHEUS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule.get("record"))
def test_a_rule_names_what_an_agent_exports(rule: dict[str, Any], exported: set[str]) -> None:
    named = metrics_in(rule["expr"])
    assert named
    assert named <= exported | OF_PROMETHEUS | RECORDED


def test_the_dashboard_speaks_promql_and_asks_for_the_chosen_nodes_and_peers(tmp_path: Path) -> None:
    rules = []
    for number, (where, query) in enumerate(queries().items()):
        assert where.startswith(("variable node", "annotation")) or 'instance=~"$node"' in query, where
        if re.search(r"tombsync_(deliveries|peer_up|push_|oldest|canary|inbox)", query) and "variable" not in where:
            assert 'peer=~"$peer"' in query, where
        plain = query.replace("$__rate_interval", "5m").replace("$node", ".*").replace("$peer", ".*")
        assert "$" not in plain, where
        rules.append({"record": f"query:{number}".replace(":", "_"), "expr": plain})
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_the_panels_are_apart_and_each_has_a_name() -> None:
    taken: set[tuple[int, int]] = set()
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def test_the_rules_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", Path(__file__).with_name("prometheus_rules.yml"))


def test_the_example_of_a_configuration() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert: dict[str, Any]) -> None:
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in ("warning", "critical")
    file, _, anchor = annotations["runbook"].partition("#")
    headings = re.findall(r"^## (.*)$", (TOP / file).read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
    assert f'alertname="{alert["alert"]}"' in Path(__file__).with_name("prometheus_rules.yml").read_text()


def test_the_runbook_has_a_section_for_each_alert_and_none_besides() -> None:
    headings = re.findall(r"^## (Tombsync\w+)$", (TOP / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]
