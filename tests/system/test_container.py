"""The container image, built without any registry on a root file system of this machine's own programs."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import tombsync
from tests.support.programs import need
from tests.support.rootfs import make_rootfs
from tests.support.trees import need_root

TOP = Path(__file__).parents[2]
CONTEXT = ("container", "tombsync", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", ".dockerignore")
BUILD_ARGS = {
    "SOURCE": "https://git.example/owner/tombsync",
    "REVISION": "0123456789abcdef0123456789abcdef01234567",
    "VERSION": "1.2.3",
    "CREATED": "2019-11-13T02:45:51Z",
}
pytestmark = pytest.mark.timeout(300)


class Builder:
    """buildah with a store of its own, and a copy of what the image is made of."""

    def __init__(self, base: Path) -> None:
        self._buildah = need("buildah")
        self._base = base
        self.context = base / "context"
        self.context.mkdir()
        for name in CONTEXT:
            if (TOP / name).is_dir():
                shutil.copytree(TOP / name, self.context / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(TOP / name, self.context)

    def run(self, *words: str | Path, prefix: Sequence[str] = ()) -> str:
        """One of its commands, under the command `prefix`: what it printed."""
        store = ["--storage-driver=overlay", f"--root={self._base}/store", f"--runroot={self._base}/run"]
        command = [*prefix, self._buildah, *store, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=self.context)
        assert done.returncode == 0, f"{words[0]}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def import_base(self, rootfs: Path) -> None:
        """Make the base image."""
        container = self.run("from", "scratch").strip()
        self.run("copy", container, rootfs, "/")
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.run("config", "--env", f"PATH={path}", container)
        self.run("commit", "--rm", container, "localhost/base")

    def build(self, wheels: Path) -> dict[str, Any]:
        """Build the image as it stands in the context now: what it is."""
        arguments = {**BUILD_ARGS, "BASE": "localhost/base", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        self.run(
            "build", "--isolation=chroot", "--pull=never", "--layers", "--format=docker",
            f"--volume={wheels}:/wheels:ro",
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            "--file=container/Containerfile", "--tag=localhost/tombsync", ".",
        )  # fmt: skip
        found: dict[str, Any] = json.loads(self.run("inspect", "--type=image", "localhost/tombsync"))["Docker"]
        return found


def requirements() -> Sequence[str]:
    """What setup.cfg has installed."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(TOP / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that an installation needs, for a build that asks nobody."""
    directory = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--dest={directory}"]
    done = subprocess.run([*command, *requirements(), "setuptools>=68"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    base = tmp_path_factory.mktemp("container")
    need_root()
    # In memory: an image is some thousand small files, many times over, and an overlay cannot lie on another one.
    mount = [need("mount"), "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(base)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        builder = Builder(base)
        make_rootfs(base / "rootfs")
        builder.import_base(base / "rootfs")
        yield builder
    finally:
        subprocess.run([need("umount"), "--lazy", "--recursive", str(base)], check=True, timeout=60)


@pytest.fixture(scope="module")
def image(builder: Builder, wheels: Path) -> dict[str, Any]:
    return builder.build(wheels)


def test_what_the_image_says_of_itself(image: dict[str, Any]) -> None:
    config = image["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tombsync"]
    assert config["Cmd"] == ["run", "--listen", "0.0.0.0:9786"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert "/healthz" in config["Healthcheck"]["Test"][-1]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert {name: labels[name.lower()] for name in BUILD_ARGS} == dict(BUILD_ARGS)
    assert (labels["title"], labels["licenses"]) == ("tombsync", "MIT")


def test_the_program_in_it_runs_and_is_not_root(image: dict[str, Any], builder: Builder) -> None:
    container = builder.run("from", "--pull=never", "localhost/tombsync").strip()

    # A network of its own: the port is fixed.
    apart = [need("unshare"), "--net", "sh", "-c", f'{need("ip")} link set lo up && exec "$@"', "sh"]

    def run(*words: str) -> str:
        return builder.run("run", "--isolation=chroot", container, "--", *words, prefix=apart).strip()

    assert run("tombsync", "--version").endswith(tombsync.__version__)
    assert run("id", "-u") == "10001"
    with pytest.raises(AssertionError, match="Permission denied"):
        run("sh", "-c", ": >/opt/tombsync/new")
    assert run("sh", "-c", ": >/var/lib/tombsync/new && ls /var/lib/tombsync") == "new"
    assert run("sh", "-c", "ls /opt/tombsync/bin").split().count("tombsync") == 1
    probe = image["config"]["Healthcheck"]["Test"][1:]
    script = f"""
import subprocess, sys, time
agent = subprocess.Popen(["tombsync", "run", "--root", "/tmp", "--state-dir", "/var/lib/tombsync", "--node", "n"])
deadline = time.monotonic() + 30
while (code := subprocess.run({probe!r}, stderr=subprocess.DEVNULL).returncode) and time.monotonic() < deadline:
    time.sleep(0.1)
agent.terminate()
assert agent.wait() == 0
sys.exit(code or not subprocess.run({probe!r}, stderr=subprocess.DEVNULL).returncode)
"""
    run("python3", "-c", script)


def test_a_change_of_the_source_makes_one_layer_anew(image: dict[str, Any], builder: Builder, wheels: Path) -> None:
    before = image["rootfs"]["diff_ids"]
    with (builder.context / "tombsync" / "names" / "paths.py").open("a") as source:
        source.write("\nADDED = 1\n")
    settings = builder.context / "setup.cfg"
    settings.write_text(settings.read_text().replace("timeout = 60", "timeout = 61"))  # no dependency
    after = builder.build(wheels)["rootfs"]["diff_ids"]
    changed = [number for number, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert changed == [len(before) - 1]
    assert len(before) == 4  # the base, the directories, the dependencies, the program


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, TOP / "container" / "Containerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_workflow_builds_with_every_argument_and_pushes_to_the_owner_of_the_repository() -> None:
    workflow = yaml.safe_load((TOP / ".github" / "workflows" / "image.yml").read_text())
    assert workflow["permissions"] == {"contents": "read", "packages": "write"}
    (job,) = workflow["jobs"].values()
    step = job["steps"][-1]
    assert step["env"]["OWNER"] == "${{ github.repository_owner }}"
    assert step["env"]["SOURCE"] == "${{ github.server_url }}/${{ github.repository }}"
    assert set(re.findall(r"--build-arg (\w+)=", step["run"])) == BUILD_ARGS.keys()


@pytest.mark.parametrize(
    ("kind", "name", "tags"), [("branch", "main", ["edge"]), ("tag", "v1.2.3", ["1.2.3", "latest"])]
)
def test_what_the_workflow_calls_the_image(kind: str, name: str, tags: list[str], tmp_path: Path) -> None:
    """Its script, run with a `docker` that only says what it was told."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    docker.chmod(0o755)
    workflow = yaml.safe_load((TOP / ".github" / "workflows" / "image.yml").read_text())
    script = workflow["jobs"]["image"]["steps"][-1]["run"]
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "OWNER": "Some-Owner",
        "SOURCE": BUILD_ARGS["SOURCE"],
        "GITHUB_SHA": BUILD_ARGS["REVISION"],
        "REF_TYPE": kind,
        "REF_NAME": name,
    }
    command = [need("bash"), "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=TOP, env=env)
    assert done.returncode == 0, done.stderr
    build, *pushes = done.stdout.splitlines()
    names = [f"ghcr.io/some-owner/tombsync:{tag}" for tag in tags]
    assert pushes == [f"push {each}" for each in names]
    assert re.findall(r"--tag=(\S+)", build) == names
    assert f"--build-arg VERSION={tags[0]} " in build
