"""What the image makes of its FAT partition: good files, wrong files, and what a person's editor does to them."""

import tomllib

import pytest

from deploy.arm_tree import ROOT
from deploy.image import board, card
from link.keys import enroll
from onboard import config as config_file

FALLBACK = '[camera]\nsource = "sim://?seed=9"\n'
GOOD = '# mine\n[board]\nwifi = "Hof"\nwifi_password = "langes Wort"\n\n[camera]\nrows = 4\n'


@pytest.fixture
def fat(tmp_path):
    folder = tmp_path / "fat"
    folder.mkdir()
    return folder


def read(fat, text=None):
    if text is not None:
        (fat / "hadanet.toml").write_text(text)
    return card.read(fat, FALLBACK, "of the last start")


def loaded(tmp_path, text):
    path = tmp_path / "onboard.toml"
    path.write_text(text)
    return config_file.load(path)


def test_what_is_shipped_is_good(fat):
    found = read(fat, (ROOT / "deploy/image/hadanet.toml").read_text())
    assert (found.problems, found.board, found.taken) == ((), card.Board(), True)
    assert found.name == "hadanet"
    assert "sim://" not in found.config.split("#")[0]


def test_board_and_daemon_each_get_their_part(fat, tmp_path):
    found = read(fat, GOOD)
    assert found.problems == ()
    assert found.board == card.Board(wifi="Hof", wifi_password="langes Wort")
    assert loaded(tmp_path, found.config).camera.rows == 4
    assert found.config.splitlines().index("[camera]") == GOOD.splitlines().index("[camera]")  # errors name this line


@pytest.mark.parametrize("link", ["", "[link]\n", "[ link ]   # the station\n"])
def test_the_key_file_is_used_under_any_name(fat, tmp_path, link):
    enroll(tmp_path / "station", "kestrel", "tcp://192.168.1.10:5750", fat / "kestrel.toml")
    (fat / "._kestrel.toml").write_text("a Mac's own")
    found = read(fat, GOOD + link)
    assert (found.problems, found.name) == ((), "kestrel")
    assert found.drone.address == "tcp://192.168.1.10:5750"
    config = loaded(tmp_path, card.with_keys(found.config))
    assert (config.link.keys, config.camera.rows) == (card.KEYS, 4)


def test_a_link_that_cannot_be_told_of_its_keys(fat, tmp_path):
    enroll(tmp_path / "station", "kestrel", "tcp://192.168.1.10:5750", fat / "kestrel.toml")
    found = read(fat, 'link.keys = ""\n')
    assert found.problems == ("hadanet.toml: write [link] as a table of its own; flies without a station",)
    assert (found.keys, found.drone) == (None, None)
    assert "leave out link.keys" in read(fat, '[link]\nkeys = ""\n').problems[0]


WRONG = {
    "camera]\n": "hadanet.toml: not valid TOML",
    "[camera]\nrows = 99\n": "hadanet.toml, line 2: ",
    "[board]\nwifi = 'x'\n\n[camera]\nrosw = 9\n": "hadanet.toml, line 5: ",
    "[link]\nkeys = 'mine.toml'\n": "leave out link.keys",
    "board = {wifi = 'x'}\n": "write [board] as a table of its own",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_named_and_the_last_good_one_flies(fat, text):
    found = read(fat, text)
    assert WRONG[text] in found.problems[0]
    assert str(fat) not in found.problems[0]
    assert found.problems[1:] == ("flies with the configuration of the last start",)
    assert (found.config, found.taken) == (FALLBACK, False)


BOARDS = {
    "wifi = 7": "wifi",
    "wifii = 'x'": "wifii",
    f"wifi = '{'ö' * 17}'": "at most 32 bytes",
    "wifi_password = 'short'": "wifi_password",
    "wifi_country = 'de'": "wifi_country",
    "ssh_key = 'command=\"x\"'": "not a public key",
    "ssh_key = 'ssh-ed25519 AAAA x\\nssh-ed25519 BBBB'": None,  # TOML's own literal text: no new line in it
    'ssh_key = "ssh-ed25519 AAAA x\\nssh-ed25519 BBBB"': "not a public key",
}


@pytest.mark.parametrize("line", BOARDS)
def test_a_wrong_board_does_not_ground_the_daemon(fat, tmp_path, line):
    found = read(fat, f"[board]\n{line}\n[camera]\nrows = 4\n")
    wanted = BOARDS[line]
    assert [wanted in problem for problem in found.problems] == ([True] if wanted else [])
    assert loaded(tmp_path, found.config).camera.rows == 4
    assert found.taken
    if wanted:
        assert found.board == card.Board()


def test_nothing_there(fat):
    found = read(fat)
    assert "hadanet.toml: missing" in found.problems[0]
    assert found.config == FALLBACK


def test_what_editors_do(fat):
    (fat / "hadanet.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read(fat).problems == ()
    (fat / "hadanet.toml").write_bytes(GOOD.encode("utf-16"))
    assert "save it as UTF-8" in read(fat).problems[0]


def test_wrong_keys_fly_without_a_station(fat, tmp_path):
    (fat / "kestrel.toml").write_text("name = 'kestrel'\n")
    (fat / "kestrel.toml").chmod(0o600)
    found = read(fat, GOOD)
    assert found.problems[0].startswith("kestrel.toml: ")
    assert found.problems[0].endswith("flies without a station")
    assert (found.drone, found.name, found.taken) == (None, "hadanet", True)
    (fat / "merlin.toml").write_text("")
    assert "kestrel.toml, merlin.toml: more than one key file" in read(fat).problems[0]


def test_wifi_says_no_more_than_it_must():
    # the key of IEEE 802.11's own example, Annex J: passphrase "password", network "IEEE"
    text = card.supplicant(card.Board(wifi="IEEE", wifi_password="password", wifi_country="DE"))
    assert "psk=f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e" in text
    assert "password" not in text
    assert f"ssid={b'IEEE'.hex()}" in text
    assert text.startswith("country=DE\n")
    assert "key_mgmt=NONE" in card.supplicant(card.Board(wifi='a"}\nb'))


def test_what_the_fat_partition_is_told(fat, tmp_path):
    enroll(tmp_path / "station", "kestrel", "tcp://192.168.1.10:5750", fat / "kestrel.toml")
    text = board.told(read(fat, GOOD), "1.2", [])
    assert text.splitlines() == [
        "hadanet-uav 1.2",
        "drone: kestrel, station tcp://192.168.1.10:5750",
        "Wi-Fi: Hof",
        "log in: nobody (no ssh_key)",
        "",
        "All is well.",
    ]
    secrets = tomllib.loads((fat / "kestrel.toml").read_text())
    assert not any(secret in text for secret in (secrets["secret_key"], "langes Wort"))
    found = read(fat, "[camera]\nrows = 99\n")
    assert "- hadanet.toml, line 2: " in board.told(found, "1.2", list(found.problems))


def test_a_file_is_written_whole_and_only_where_it_changes(tmp_path):
    path = tmp_path / "a/keys.toml"
    board.write(path, "one", 0o600)
    before = path.stat()
    board.write(path, "one", 0o600)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    board.write(path, "two", 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o600)
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.toml"]


def test_kernels_are_named_for_a_backend_that_exists():
    from models.simd.choice import choose

    text = (ROOT / "deploy/image/root/usr/lib/hadanet/kernels.env").read_text()
    named = dict(line.split("=", 1) for line in text.splitlines())
    assert choose(set(), environment=named).name == "neon"
    assert set(named) == {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "HADANET_SIMD"}
