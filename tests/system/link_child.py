"""A drone in a process of its own, to be killed: posts deltas without end and notes each label once, by its number.

Arguments: key file, folder, number of the first delta, count of deltas. Exits when all are acknowledged and a label of
number -1 has come.
"""

import sys
import threading
from pathlib import Path

from link.drone import DroneLink
from link.keys import DroneKeys
from link.messages import Label
from tests.system.link_rig import delta, hello


def main():
    file, folder, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    notes = folder / "labels.txt"
    known = set(notes.read_text().split()) if notes.exists() else set()
    ended = threading.Event()

    def on_message(message):
        if isinstance(message, Label) and str(message.id) not in known:
            known.add(str(message.id))
            with notes.open("a") as out:
                out.write(f"{message.id}\n")
            if message.id == -1:
                ended.set()

    folder.mkdir(exist_ok=True)
    link = DroneLink(DroneKeys.load(file), folder, hello, on_message)
    link.start()
    for number in range(first, first + count):
        link.post(delta(number))
    if not (ended.wait(30) and link.flush(30)):
        sys.exit("not everything arrived")
    link.close()


if __name__ == "__main__":
    main()
