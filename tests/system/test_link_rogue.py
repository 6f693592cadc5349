"""The station against bare sockets: drones that misbehave, speak another protocol, or call in an odd moment."""

import time

import msgspec
import pytest
import zmq

from link.codec import encode
from link.keys import DroneKeys
from link.messages import PROTOCOL, Status, Welcome
from tests.system.link_rig import delta, hello, label


@pytest.fixture
def rogue(rig):
    """A bare socket with the keys of an enrolled drone."""
    sockets = []
    context = zmq.Context()

    def call(file, route=None):
        keys = DroneKeys.load(file)
        sock = context.socket(zmq.DEALER)
        sockets.append(sock)
        sock.linger = 0
        sock.rcvtimeo = sock.sndtimeo = 10_000
        sock.curve_serverkey, sock.curve_publickey, sock.curve_secretkey = keys.station, keys.public, keys.secret
        if route:
            sock.setsockopt(zmq.ROUTING_ID, route)
        sock.connect(keys.address)
        return sock

    yield call
    for sock in sockets:
        sock.close()
    context.term()


def greeting(**fields):
    return encode(msgspec.structs.replace(hello(), **{"drone": "crow", "boot": 1} | fields))


def test_a_misbehaving_drone_harms_nobody(rig, rogue):
    station = rig.station()
    kite = rig.drone(rig.enroll("kite", station.link.address))
    crow = rogue(rig.enroll("crow", station.link.address))
    bad = [b"", b"\xc1" * 100, encode(Status(frame=1, t_ns=1)), greeting(drone="kite"), greeting(drone="Robert'); --")]
    for data in bad:
        crow.send(data)
    crow.send_multipart([b"more", b"than", b"one"])
    rig.watch.until(lambda: station.stats("crow").rejected == 6)
    assert "kite" not in station.got
    assert not station.link.connected("crow")
    crow.send(greeting())
    assert msgspec.msgpack.decode(crow.recv())[0] == 16
    assert station.link.connected("crow")
    for data in [msgspec.msgpack.encode([64, 1, 1, True, b"rubbish"]), encode(delta(1)), b"\x92\x41"]:
        crow.send(data)
    rig.watch.until(lambda: station.stats("crow").rejected == 9)
    crow.send(bytes(1_000_000))
    rig.watch.until(lambda: not station.link.connected("crow"))
    kite.link.post(delta(7))
    assert kite.link.flush(20)
    assert station.got == {"kite": [7]}
    assert station.stats("kite").rejected == 0


def test_a_drone_that_calls_in_the_moment_it_is_enrolled_is_let_in(rig, rogue, monkeypatch):
    """Its call comes when the station has just read who is enrolled; a refused handshake is not tried again."""
    station = rig.station()
    read, called = station.link._allowed.read, []

    def enrolled_meanwhile():
        before = read()
        if not called:
            called.append(rogue(rig.enroll("crow", station.link.address)))
            called[0].send(greeting())
            time.sleep(0.5)  # the handshake comes as far as the question whether it may in
        return before

    monkeypatch.setattr(station.link._allowed, "read", enrolled_meanwhile)
    rig.drone(rig.enroll("kite", station.link.address))  # wakes the station
    rig.watch.until(lambda: len(station.hellos) == 2)
    assert station.link.refused_calls == 0


def test_a_drone_cannot_take_the_route_of_another(rig, rogue):
    station = rig.station()
    kite = rig.drone(rig.enroll("kite", station.link.address))
    rig.watch.until(lambda: kite.link.stats.connected)
    crow = rogue(rig.enroll("crow", station.link.address), route=station.link._peers["kite"].route)
    crow.rcvtimeo = 500
    crow.send(greeting())
    with pytest.raises(zmq.Again):
        crow.recv()
    station.post("kite", label(5))
    rig.watch.until(lambda: kite.labels() == [5])
    assert [greeted.drone for greeted in station.hellos] == ["kite"]


def test_another_protocol_version_is_told_on_both_sides(rig, rogue):
    station = rig.station()
    crow = rogue(rig.enroll("crow", station.link.address))
    crow.send(greeting(protocol=99))
    assert msgspec.msgpack.decode(crow.recv())[:2] == [16, PROTOCOL]
    assert station.hellos == []
    assert station.stats("crow").problem == f"it speaks protocol 99, this station {PROTOCOL}: update one of them"
    drone = rig.drone(rig.enroll("kite", station.link.address))
    rig.watch.until(lambda: drone.link.stats.connected)
    station.post("kite", Welcome(protocol=77, t_ns=0, mirror_hash=b""))
    drone.until_problem("speaks protocol 77")
