"""Drones and a station over real sockets: kills, cuts, foreign keys, and drones that misbehave."""

import itertools
import os
import random
import subprocess
import sys

import pytest

from link import dealer
from link.messages import Control, Mirror, Status, Welcome
from link.wire import wire_bytes
from models.errors import LinkError
from tests.system.link_rig import delta, label


def up(stats):
    return stats.bytes_up, stats.messages_up


def test_both_ways(rig):
    station = rig.station()
    drone = rig.drone(rig.enroll("kite", station.link.address))
    for number in range(300):
        drone.link.post(delta(number))
    station.post("kite", *map(label, range(50)), Control(action="freeze"), Mirror(model_hash=b"h", deltas=3))
    assert drone.link.flush(20)
    assert station.got == {"kite": list(range(300))}
    rig.watch.until(lambda: len(drone.labels()) == 50 and Control(action="freeze") in drone.got)
    assert drone.labels() == list(range(50))
    (greeting,) = station.hellos
    assert greeting.drone == "kite"
    assert greeting.boot > 0
    stats, mirrored = drone.link.stats, station.stats("kite")
    assert stats.connected
    assert mirrored.connected
    assert (stats.problem, stats.repeated, stats.refused, mirrored.rejected) == ("", 0, 0, 0)
    rig.watch.until(lambda: station.stats("kite").pending == 0 and up(station.stats("kite")) == up(drone.link.stats))


def test_ipc(rig):
    station = rig.station(address=f"ipc://{rig.folder}/sock")
    drone = rig.drone(rig.enroll("kite", station.link.address))
    drone.link.post(delta(1))
    assert drone.link.flush(20)


def test_counted_bytes_are_those_on_the_line(rig, monkeypatch):
    monkeypatch.setattr(dealer, "HEARTBEAT_S", 1000)
    station = rig.station()
    proxy = rig.proxy(station.link.address)
    drone = rig.drone(rig.enroll("kite", proxy.address))
    drone.link.post(delta(0))
    assert drone.link.flush(20)
    up, down = proxy.up - drone.link.stats.bytes_up, proxy.down - drone.link.stats.bytes_down
    assert 500 < up < 650  # the handshake
    assert 250 < down < 350
    for size in (1, 170, 180, 190, 200, 210, 250, 5000):
        drone.link.post(delta(size, size))
        assert drone.link.flush(20)
    assert proxy.up - drone.link.stats.bytes_up == up
    assert proxy.down - drone.link.stats.bytes_down == down
    assert {wire_bytes(222) - 222, wire_bytes(223) - 223} == {35, 42}


def test_kills_in_mid_stream(rig):
    station = rig.station()
    file, folder = rig.enroll("kite", station.link.address), rig.folder / "child"
    numbers = itertools.count()
    for run in range(4):
        command = [sys.executable, "-m", "tests.system.link_child", file, folder, str(run * 10_000), "400"]
        with subprocess.Popen(command) as child:
            if run < 3:
                enough = len(station.got.get("kite", [])) + 50 + 70 * run
                for _ in range(100):
                    station.post("kite", label(next(numbers)))
                rig.watch.until(lambda enough=enough: len(station.got.get("kite", [])) >= enough)
                child.kill()
            else:
                station.post("kite", label(-1))
                assert child.wait(60) == 0
    got = station.got["kite"]
    runs = {run: [n for n in got if n // 10_000 == run] for run in range(4)}
    assert got == sorted(got)
    for run, mine in runs.items():  # a prefix of what was posted: what a kill found in memory is gone, nothing else
        assert mine == list(range(run * 10_000, run * 10_000 + len(mine)))
    assert len(runs[3]) == 400
    notes = [int(n) for n in (folder / "labels.txt").read_text().split()]
    assert notes == [*range(300), -1]


def test_connections_that_are_cut_at_random(rig):
    station = rig.station()
    proxy = rig.proxy(station.link.address, every_bytes=(3_000, 30_000))
    drone = rig.drone(rig.enroll("kite", proxy.address))
    draw = random.Random(2)
    for number in range(300):
        drone.link.post(delta(number, draw.randrange(600)))
        if number % 3 == 0:
            station.post("kite", label(number))
    assert drone.link.flush(60)
    rig.watch.until(lambda: len(drone.labels()) == 100)
    assert station.got["kite"] == list(range(300))
    assert drone.labels() == list(range(0, 300, 3))
    assert proxy.cuts > 3


def test_a_station_that_is_away_and_comes_back(rig):
    station = rig.station()
    address = station.link.address
    file = rig.enroll("kite", address)
    station.close()
    drone = rig.drone(file)
    drone.until_problem("cannot be reached: still calling")
    drone.link.post(delta(1))
    assert not drone.link.flush(0.0)
    station = rig.station(address=address)
    assert drone.link.flush(20)
    assert drone.link.stats.problem == ""
    station.post("kite", label(1))
    rig.watch.until(lambda: drone.labels() == [1])
    station.close()
    drone.link.post(delta(2))
    again = rig.station(address=address)
    again.post("kite", label(2))
    assert drone.link.flush(20)
    rig.watch.until(lambda: drone.labels() == [1, 2])
    assert (station.got, again.got) == ({"kite": [1]}, {"kite": [2]})


def test_what_was_posted_before_close_is_sent_at_the_next_start(rig):
    station = rig.station()
    address = station.link.address
    file = rig.enroll("kite", address)
    station.close()
    first = rig.drone(file)
    for number in range(500):
        first.link.post(delta(number))
    first.link.close()
    with pytest.raises(LinkError, match="the link is closed"):
        first.link.post(delta(1))
    station = rig.station(address=address)
    second = rig.drone(file)
    second.link.post(delta(500))
    assert second.link.flush(20)
    assert station.got == {"kite": list(range(501))}


def test_labels_wait_for_a_drone_that_is_away(rig):
    station = rig.station()
    file = rig.enroll("kite", station.link.address)
    station.post("kite", label(1), label(2), Welcome(protocol=1, t_ns=0, mirror_hash=b""))
    assert station.stats("kite").pending == 2
    assert station.stats("kite").dropped_casual == 1
    drone = rig.drone(file)
    rig.watch.until(lambda: drone.labels() == [1, 2])
    drone.link.close()
    rig.watch.until(lambda: not station.link.connected("kite"))
    station.post("kite", label(3))
    again = rig.drone(file)
    rig.watch.until(lambda: again.labels() == [3])


def test_another_stations_key(rig, caplog):
    station = rig.station("other")
    drone = rig.drone(rig.enroll("kite", station.link.address, station="mine"))
    drone.link.post(delta(1))
    drone.until_problem("most likely that station has another key")
    assert not drone.link.flush(1.0)  # and several more calls in this time
    assert sum("another key" in record.message for record in caplog.records) == 1
    assert not drone.link.stats.connected
    assert station.hellos == []


def test_a_drone_that_is_enrolled_while_it_calls(rig, caplog):
    station = rig.station()
    file = rig.enroll("kite", station.link.address)
    entry = rig.folder / "station" / "drones" / "kite.toml"
    text = entry.read_bytes()
    entry.unlink()
    drone = rig.drone(file)
    drone.link.post(delta(1))
    drone.until_problem("refuses drone 'kite' (code 400): it is not on its list")
    assert station.got == {}
    with pytest.raises(LinkError, match="no drone 'kite' is enrolled"):
        station.post("kite", label(1))
    entry.write_bytes(text)
    assert drone.link.flush(20)
    assert drone.link.stats.problem == ""
    assert sum("refuses drone" in record.message for record in caplog.records) == 1
    assert station.link.refused_calls >= 1


def test_a_drone_that_is_taken_off_the_list_is_heard_no_more(rig):
    station = rig.station()
    drone = rig.drone(rig.enroll("kite", station.link.address))
    drone.link.post(delta(1))
    assert drone.link.flush(20)
    (rig.folder / "station" / "drones" / "kite.toml").unlink()
    drone.link.post(delta(2))
    rig.watch.until(lambda: not station.link.connected("kite"))
    assert not drone.link.flush(0.3)
    assert station.got == {"kite": [1]}


def test_a_port_in_use(rig):
    station = rig.station()
    with pytest.raises(LinkError, match=f"{station.link.address}: cannot listen there .Address already in use"):
        rig.station("second", station.link.address)
    rig.station("second")  # and nothing of the failed one is left over


def test_a_cancelled_station_lets_go_of_its_port(rig):
    station = rig.station()
    station.task.cancel()
    rig.loop.run(station.link.close())
    rig.station(address=station.link.address)


def test_close_before_run(rig):
    station = rig.station()

    async def inside():
        await station.link.close()
        await station.link.close()

    rig.loop.run(inside())


def test_handlers_that_fail_get_the_message_again(rig, caplog):
    station = rig.station()
    station.fail = {3, 4}
    drone = rig.drone(rig.enroll("kite", station.link.address))
    for number in range(6):
        drone.link.post(delta(number))
    assert drone.link.flush(20)
    assert station.got == {"kite": list(range(6))}
    assert "failed in its handler" in caplog.text
    assert station.stats("kite").rejected == 2


def test_casual_messages_without_a_connection_are_dropped_and_counted(rig):
    station = rig.station()
    file = rig.enroll("kite", station.link.address)
    station.close()
    drone = rig.drone(file)
    drone.until_problem("cannot be reached")
    for number in range(200):
        drone.link.post(Status(frame=number, t_ns=0))
    drone.link.close()
    assert drone.link.stats.dropped_casual > 100
    assert drone.link.stats.pending == 0


def test_a_message_that_cannot_be_sent_is_the_callers_error(rig):
    station = rig.station()
    drone = rig.drone(rig.enroll("kite", station.link.address))
    with pytest.raises(LinkError, match="cannot be sent"):
        drone.link.post(delta(1, 300_000))
    with pytest.raises(LinkError, match="in use by another process"):
        rig.drone(rig.folder / "kite.toml")
    drone.link.post(delta(2))
    assert drone.link.flush(20)


FULL_DISK = """
import pathlib, resource, signal, sys, threading, logging
from link import drone
from link.drone import DroneLink
from link.keys import DroneKeys
from tests.system.link_rig import delta, hello

drone.RETRY_MIN_S = drone.RETRY_MAX_S = 0.1
drone.MAX_WAITING = 500
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
link = DroneLink(DroneKeys.load(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), hello, print)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))
told = threading.Event()
handler = logging.Handler()
handler.emit = lambda record: "cannot be written" in record.getMessage() and told.set()
logging.getLogger("link").addHandler(handler)
link.start()
for number in range(800):
    link.post(delta(number, 3000))
assert told.wait(20)
assert "cannot be written" in link.stats.problem, link.stats
dropped = link.stats.dropped_reliable
assert 0 < dropped <= 300, link.stats
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
link.close()
print(800 - dropped)
"""


def test_a_full_disk_on_the_drone(rig):
    station = rig.station()
    address = station.link.address
    file = rig.enroll("kite", address)
    station.close()
    command = [sys.executable, "-c", FULL_DISK, file, rig.folder / "kite"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    count = int(run.stdout)
    station = rig.station(address=address)
    drone = rig.drone(file)
    assert drone.link.flush(20)
    assert len(station.got["kite"]) == count
    assert station.got["kite"] == sorted(set(station.got["kite"]))


def test_an_outbox_that_is_damaged_in_flight(rig):
    station = rig.station()
    address = station.link.address
    file = rig.enroll("kite", address)
    station.close()
    drone = rig.drone(file)
    for number in range(1000):  # more than SQLite caches
        drone.link.post(delta(number, 4000))
    rig.watch.until(lambda: not drone.link._waiting)
    for path in (rig.folder / "kite").iterdir():
        with path.open("r+b") as out:
            size = out.seek(0, os.SEEK_END)
            out.seek(4096)
            out.write(os.urandom(size - 4096))
    station = rig.station(address=address)
    drone.link.post(delta(2000))
    rig.watch.until(lambda: len(list((rig.folder / "kite").glob("*.corrupt-*"))) > 0)
    drone.link.post(delta(2001))
    assert drone.link.flush(20)
    assert station.got["kite"][-1] == 2001
