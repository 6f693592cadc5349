"""Key files: who may read them, what is in them, and that no secret is ever told."""

import os
import tomllib

import pytest
import zmq

from link.keys import AllowList, DroneKeys, StationKeys, enroll
from models.errors import LinkError

ADDRESS = "tcp://192.168.1.10:5555"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "station"


@pytest.fixture
def file(tmp_path, folder):
    return enroll(folder, "kite-7", ADDRESS, tmp_path / "kite-7.toml")


def test_keys_that_belong_together(folder, file):
    station, drone = StationKeys.load_or_create(folder), DroneKeys.load(file)
    assert (drone.name, drone.address) == ("kite-7", ADDRESS)
    assert drone.station == station.public == zmq.curve_public(station.secret)
    assert drone.public == zmq.curve_public(drone.secret)
    assert drone.public != station.public
    assert AllowList(folder).read() == {drone.public: "kite-7"}


def test_the_station_keeps_its_keys_and_no_drone_secret(folder, file):
    assert StationKeys.load_or_create(folder) == StationKeys.load_or_create(folder)
    secret = DroneKeys.load(file).secret.decode()
    assert secret in file.read_text()
    assert all(secret not in path.read_text() for path in folder.rglob("*") if path.is_file())


def test_files_and_folders_are_private(folder, file):
    paths = [file, folder, *folder.rglob("*")]
    assert {p.name for p in paths} == {"kite-7.toml", "station", "station.toml", "drones"}
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_no_repr_tells_a_secret(folder, file):
    for keys in (DroneKeys.load(file), StationKeys.load_or_create(folder)):
        assert "public" in repr(keys)
        assert keys.secret.decode() not in repr(keys) + str(keys) + str([keys])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(file, folder, mode):
    for path, load in ((file, DroneKeys.load), (folder / "station.toml", lambda _: StationKeys.load_or_create(folder))):
        path.chmod(mode)
        with pytest.raises(LinkError, match=f"others can read this secret: run  chmod 600 {path}"):
            load(path)


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "kite_7", "a" * 33, "../x", "a/b", "a\n", "kite 7", "é", "a.b", "a\x00"]
)
def test_bad_names(tmp_path, folder, name):
    with pytest.raises(LinkError, match="no name for a drone"):
        enroll(folder, name, ADDRESS, tmp_path / "out.toml")
    assert not (tmp_path / "out.toml").exists()


@pytest.mark.parametrize("name", ["a", "7", "a" * 32, "kite-7-"])
def test_good_names(tmp_path, folder, name):
    assert DroneKeys.load(enroll(folder, name, ADDRESS, tmp_path / "out.toml")).name == name


@pytest.mark.parametrize(
    "address",
    ["", "192.168.1.10:5555", "tcp://host", "tcp://*:5555", "tcp://host:0", "tcp://host:65536", "udp://host:1",
     'tcp://ho"st:1', "tcp://host:5555\n", "ipc://", 'ipc://a"b'],
)  # fmt: skip
def test_bad_addresses(tmp_path, folder, address):
    with pytest.raises(LinkError, match="no address of a station: write tcp://HOST:PORT"):
        enroll(folder, "kite", address, tmp_path / "out.toml")


@pytest.mark.parametrize("address", ["tcp://[fe80::1]:5555", "tcp://ground.local:1", "ipc:///run/hadanet link"])
def test_good_addresses(tmp_path, folder, address):
    assert DroneKeys.load(enroll(folder, "kite", address, tmp_path / "out.toml")).address == address


def test_nothing_is_overwritten_without_force(tmp_path, folder, file):
    before = file.read_bytes()
    with pytest.raises(LinkError, match="a drone 'kite-7' is enrolled already"):
        enroll(folder, "kite-7", ADDRESS, tmp_path / "other.toml")
    with pytest.raises(LinkError, match="the drone's file exists already"):
        enroll(folder, "hawk", ADDRESS, file)
    assert file.read_bytes() == before
    old = DroneKeys.load(file)
    allowed = AllowList(folder)
    assert allowed.name_of(old.public) == "kite-7"
    new = DroneKeys.load(enroll(folder, "kite-7", ADDRESS, file, force=True))
    assert new.public != old.public
    assert allowed.name_of(old.public) is None
    assert allowed.name_of(new.public) == "kite-7"


def test_the_list_follows_the_folder(tmp_path, folder, file):
    allowed = AllowList(folder)
    kite = DroneKeys.load(file).public
    hawk = DroneKeys.load(enroll(folder, "hawk", ADDRESS, tmp_path / "hawk.toml")).public
    assert allowed.read() == {kite: "kite-7", hawk: "hawk"}
    (folder / "drones" / "kite-7.toml").unlink()
    assert allowed.read() == {hawk: "hawk"}
    entry = folder / "drones" / "hawk.toml"
    entry.rename(entry.with_name("owl.toml"))
    assert allowed.read() == {}
    assert "holds the key of 'hawk'" in allowed.problems[0]
    (folder / "drones" / "bad.toml").write_bytes(b"\xff\x00")
    assert allowed.read() == {}
    assert len(allowed.problems) == 2


def test_an_empty_station_lets_nobody_in(tmp_path):
    assert AllowList(tmp_path / "nowhere").read() == {}


def spoil(text, secret):
    yield text.replace(secret, secret[:-1])
    yield text.replace(secret, "#" * 40)
    yield text.replace(secret, "#" * 39 + "ä")
    yield text.replace(secret, zmq.curve_keypair()[1].decode())
    yield text.replace(f'"{secret}"', secret)
    yield text.replace(f'"{secret}"', f'"{secret}')
    yield text.replace(f'"{secret}"', f'["{secret}"]')
    yield text.replace("secret_key", "secretkey")
    yield text.replace("secret_key", "station_key")
    yield text.replace("kite-7", "Kite")
    yield text.replace("tcp://", "http://")
    yield text + f'secret_key = "{secret}"\n'
    yield text + "\x00"
    yield text.replace("public_key", "public-key")
    yield from (text[:end] for end in range(0, len(text) - 2, 7))


def test_no_spoilt_file_loads_and_no_error_tells_the_secret(file):
    text, secret = file.read_text(), DroneKeys.load(file).secret.decode()
    for spoilt in spoil(text, secret):
        file.write_text(spoilt)
        with pytest.raises(LinkError, match=r"kite-7\.toml: ") as caught:
            DroneKeys.load(file)
        chain = f"{caught.value} {caught.value.__cause__}"
        assert secret[:8] not in chain


def test_missing_files_and_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(LinkError, match="no such file: make one with  ground enroll NAME"):
        DroneKeys.load(tmp_path / "none.toml")
    with pytest.raises(LinkError, match="cannot be read"):
        DroneKeys.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LinkError, match="cannot be used for keys"):
        StationKeys.load_or_create(tmp_path / "file")
    with pytest.raises(LinkError, match="cannot be written"):
        enroll(tmp_path / "station", "kite", ADDRESS, tmp_path / "file" / "out.toml")
    assert AllowList(tmp_path / "station").read() == {}


def test_nothing_is_left_behind_when_writing_fails(tmp_path, folder, monkeypatch):
    StationKeys.load_or_create(folder)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LinkError, match="No space left on device"):
        enroll(folder, "kite", ADDRESS, tmp_path / "out" / "kite.toml")
    assert list((tmp_path / "out").iterdir()) == []
    assert AllowList(folder).read() == {}


def test_two_at_once_make_one_pair(folder):
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(StationKeys.load_or_create, [folder] * 16))
    assert len({keys.public for keys in made}) == 1


def test_files_are_plain_toml(file):
    table = tomllib.loads(file.read_text())
    assert table.keys() == {"name", "address", "public_key", "secret_key", "station_key"}
