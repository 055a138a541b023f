"""Coverage of real media by a real agent: the same figures over HTTP and by the command, with it up and down; maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.agent import AgentProcess
from tests.support.media import Shot
from tests.support.planted import CHANNEL, HOURS, Planted, Shown, plant_hours
from tests.support.waiting import wait_for
from tombsync.names import Hour, hour_number
from tombsync.timeline import HOUR_US, time_text

# An hour of each kind of file, and neighbours that reach over a border: the whole table is the unit tests' own.
WANTED = {
    "tombstoned, and a partial stands in", "suspect", "reaches over the border", "begins with the hour before",
    "nothing but what reaches in", "hidden over the border", "after what is hidden", "bad names", "chat",
    "other quality",
}  # fmt: skip
PLANTED = [one for one in HOURS if one.why in WANTED]
SOURCE = [one for one in PLANTED if one.quality == "source"]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("planted")
    plant_hours(base / "segments", base / "films", wanted=lambda one: one.why in WANTED)
    return base


@pytest.fixture(scope="module")
def agent(media: Path) -> Iterator[AgentProcess]:
    """An agent that has judged every hour."""
    agent = AgentProcess(media / "node", root=media / "segments")
    with agent:
        for quality in {one.quality for one in PLANTED}:
            wait_for(lambda: len(hours_of(agent, quality)) == sum(one.quality == quality for one in PLANTED))
        yield agent


def hours_of(agent: AgentProcess, quality: str) -> dict[str, dict[str, Any]]:
    """What it answers of each hour that it has judged since it last changed."""
    status, text = agent.get(f"/api/v1/coverage?channel={CHANNEL}&quality={quality}")
    return {hour["hour"]: hour for hour in json.loads(text)["hours"] if hour["current"]} if status == 200 else {}


def shown(hour: dict[str, Any]) -> Shown:
    files = hour["files"]
    seconds = [hour[f"{name}_s"] for name in ("covered", "editable", "partial", "tombstoned", "hole")]
    counts = [files[name] for name in ("full", "suspect", "partial", "temp", "chat", "bad", "hidden")]
    return Shown._make([*seconds, hour["overlaps"], hour["overlap_s"], *counts])


def assert_as_planted(found: dict[str, dict[str, Any]], quality: str) -> None:
    expected = {one.hour: one.shown for one in PLANTED if one.quality == quality}
    assert {hour: shown(one) for hour, one in found.items()} == expected


def by_command(agent: AgentProcess, *arguments: str) -> dict[str, dict[str, dict[str, Any]]]:
    """What the command says, by quality and hour."""
    document = json.loads(agent.run("coverage", "--json", *arguments).stdout)
    return {place["quality"]: {hour["hour"]: hour for hour in place["hours"]} for place in document["places"]}


def test_an_agent_answers_what_was_worked_out_by_hand(agent: AgentProcess) -> None:
    for quality in ("source", "160p", "chat"):
        assert_as_planted(hours_of(agent, quality), quality)


def test_the_command_says_the_same_with_the_agent_up(agent: AgentProcess) -> None:
    found = by_command(agent)
    for quality in ("source", "160p", "chat"):
        assert_as_planted(found[quality], quality)


def test_totals_are_metrics_and_add_up(agent: AgentProcess) -> None:
    def total(state: str) -> float:
        return agent.metric("coverage_seconds", channel=CHANNEL, quality="source", state=state)

    wait_for(lambda: total("covered") == pytest.approx(sum(one.shown.covered for one in SOURCE)))
    for state in ("editable", "partial", "tombstoned", "hole"):
        assert total(state) == pytest.approx(sum(getattr(one.shown, state) for one in SOURCE)), state
    assert total("covered") + total("tombstoned") + total("hole") == pytest.approx(3600 * len(SOURCE))
    _, text = agent.get("/metrics")
    series = [line for line in text.splitlines() if line.startswith("tombsync_coverage_seconds{")]
    assert len(series) == 5 * 3  # five states of three qualities, however many hours


def test_a_map_is_drawn_by_agent_and_command(agent: AgentProcess, tmp_path: Path) -> None:
    file = tmp_path / "map.png"
    file.write_text("another file, which is replaced")
    arguments = (f"{CHANNEL}/source", "--from", "2019-11-13T16:00", "--to", "2019-11-13T23:00")
    done = agent.run("coverage", *arguments, "--png", str(file))
    assert f"drawn: {file}" in done.stdout
    status, body = agent.fetch(f"/coverage/{CHANNEL}/source.png?from=2019-11-13T16&to=2019-11-13T23")
    assert (status, body) == (200, file.read_bytes())
    with Image.open(file) as picture:
        assert picture.size[0] >= 6 * 7
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["nobody"], 1, "nobody: no channel and quality of that name is here"),
        ([f"{CHANNEL}/none"], 1, f"{CHANNEL}/none: no channel and quality of that name is here"),
        (["a/b/c"], 1, "'a/b/c': not of the form CHANNEL/QUALITY"),
        ([CHANNEL, "--from", "yesterday"], 1, "'yesterday' is no time that can be read"),
        ([CHANNEL, "--from", "2019-11-13T04:00", "--to", "2019-11-13T03:00"], 1,
         "2019-11-13T03:00:00.000000Z is not after 2019-11-13T04:00:00.000000Z"),
        ([f"{CHANNEL}/source", "--from", "2019-01-01T00", "--to", "2019-12-01T00", "--png", "x.png"], 1,
         "a map of 8016 hours: 744 are the most"),
        ([f"{CHANNEL}/source", "--to", "2018-01-01T00", "--png", "x.png"], 1, "there is no hour in this range to draw"),
        ([f"{CHANNEL}/source", "--png", "/nonexistent/x.png"], 1, "No such file or directory"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_line(
    arguments: list[str], code: int, complaint: str, agent: AgentProcess, tmp_path: Path
) -> None:
    done = agent.run("coverage", *arguments, expect=code, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("tombsync: ") and complaint in lines[0]
    assert lines[1].startswith("  hint: ") and len(lines) == 2
    assert done.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--png", "x.png"], [CHANNEL, "--png", "x.png"], ["a", "--channel", "b"]])
def test_what_is_typed_wrong_is_wrong_usage(arguments: list[str], agent: AgentProcess, tmp_path: Path) -> None:
    agent.run("coverage", *arguments, expect=2, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


# -- what changes. Hours of their own, behind the planted ones. --------------------------------------------------------


def own_hour(agent: AgentProcess, hour: str, shots: list[Shot]) -> Hour:
    """Copies of a planted segment, at other instants of another hour."""
    planted = next(one for one in PLANTED if one.why == "begins with the hour before")
    data = next((agent.root / planted.place.path).glob("*.ts"))
    made = Hour(CHANNEL, "source", hour_number(hour))
    directory = agent.root / made.path
    directory.mkdir(exist_ok=True)
    for shot in shots:
        minute, second = divmod(int(shot.start_s), 60)
        name = f"{minute:02d}:{second:02d}.000000-{shot.duration_s}-{shot.type}-{data.stem.rpartition('full-')[2]}.ts"
        shutil.copyfile(data, directory / name)
    return made


def test_what_is_hidden_moves_from_covered_to_tombstoned(agent: AgentProcess) -> None:
    hour = own_hour(agent, "2019-11-20T00", [Shot(0, 1800.0), Shot(1800, 1800.0)])

    def now() -> dict[str, Any]:
        return hours_of(agent, "source").get(hour.text, {})

    wait_for(lambda: now().get("covered_s") == 3600, "the new hour to be judged", 50)
    victim = sorted(path.name for path in (agent.root / hour.path).glob("30:*.ts"))[0]
    agent.run("mark", f"{hour.path}/{victim}")
    wait_for(lambda: now().get("tombstoned_s") == 1800, "it to be judged again", 50)
    assert (now()["covered_s"], now()["hole_s"], now()["files"]["hidden"]) == (1800, 0, 1)
    # The command does not wait for that.
    found = by_command(agent, f"{CHANNEL}/source", "--from", "2019-11-20T00:00", "--to", "2019-11-20T01:00")
    assert shown(found["source"][hour.text]) == Shown(1800, 1800, tombstoned=1800, full=1, hidden=1)


def test_an_hour_that_runs_is_judged_up_to_now(agent: AgentProcess) -> None:
    running = Hour(CHANNEL, "source", hour_number("9998-01-01T00"))
    own_hour(agent, running.text, [Shot(0, 3600.0)])
    found = by_command(agent, f"{CHANNEL}/source", "--from", time_text(running.number * HOUR_US))
    (hour,) = found["source"].values()
    assert (hour["span_s"], hour["covered_s"], hour["tombstoned_s"], hour["hole_s"]) == (0, 0, 0, 0)
    assert hour["files"]["full"] == 1


# -- without an agent: an hour that is settled in the index, and one that changed since --------------------------------


def test_the_command_says_the_same_with_the_agent_down_and_sees_what_came_since(media: Path, tmp_path: Path) -> None:
    root = tmp_path / "segments"
    for one in PLANTED:
        if one.quality == "source":
            shutil.copytree(media / "segments" / one.place.path, root / one.place.path, copy_function=_link)
    node = AgentProcess(tmp_path / "node", root=root)
    expected = {one.hour: one.shown for one in SOURCE}

    def seen() -> dict[str, Shown]:
        return {hour: shown(one) for hour, one in by_command(node)["source"].items()}

    assert seen() == expected  # there is no index at all
    with node.ending():
        node.start()
        wait_for(lambda: len(hours_of(node, "source")) == len(SOURCE), "all to be judged")
        assert node.stop() == 0
    assert seen() == expected
    changed = _of("reaches over the border")
    (last,) = (root / changed.place.path).glob("59:58.5*.ts")
    last.with_suffix(".tombstone").touch()  # the file alone, as a hand makes it
    # Of its 2 s, 1.5 end this hour, and 0.5 begin the next one: that is known by its row, but it began otherwise.
    expected[changed.hour] = changed.shown._replace(covered=3598, editable=3598, tombstoned=1.5, full=1799, hidden=1)
    after = _of("begins with the hour before")
    expected[after.hour] = after.shown._replace(covered=3599.5, editable=3599.5, tombstoned=0.5)
    assert seen() == expected


def _of(why: str) -> Planted:
    return next(one for one in PLANTED if one.why == why)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
