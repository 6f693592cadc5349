"""The systemd units, judged by systemd itself; where it is not installed, that part skips."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ground.cli import _parser as ground_parser
from onboard.cli import parser as onboard_parser

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").glob("*.service"))
EXPOSURE = 25
"""At most, of 100, as `systemd-analyze security` counts it; a unit without any protection has 92 to 96."""


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request, tmp_path):
    """A copy whose program exists: systemd looks for it, and ours is not installed here."""
    text, count = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", request.param.read_text())
    assert count == 1
    copy = tmp_path / request.param.name
    copy.write_text(text)
    return copy


def analyze(*arguments):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_systemd_understands_every_line(unit):
    assert analyze("verify", unit) == (0, "")


def test_systemd_would_say_so_otherwise(unit):
    with unit.open("a") as file:
        file.write("[Service]\nNoNewPriviliges=yes\n")
    assert "NoNewPriviliges" in analyze("verify", unit)[1]


def test_little_is_exposed(unit):
    code, said = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    if "unrecognized option" in said:
        pytest.skip("this systemd is older than 250")
    assert code == 0, said


def test_the_unit_of_the_image_is_understood(tmp_path):
    """It sets the board up as root, so how exposed it is does not count; see `test_image_build`."""
    path = UNITS[0].parents[1] / "image/root/etc/systemd/system/hadanet-board.service"
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/usr/lib/hadanet/board", "/bin/true"))
    assert analyze("verify", copy) == (0, "")


def test_the_commands_are_ours():
    """What a unit starts is what our command lines take."""
    parsers = {"onboard": onboard_parser(), "ground": ground_parser()}
    seen = set()
    for path in UNITS:
        (command,) = re.findall(r"(?m)^ExecStart=/opt/hadanet/bin/(.+)$", path.read_text())
        name, *arguments = command.split()
        parsers[name].parse_args(arguments)  # SystemExit where it does not
        seen.add(name)
    assert seen == set(parsers)
