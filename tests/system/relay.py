"""Between this process's standard input and output and a port of this machine: what qemu starts for each connection
of the emulated drone to its station.
"""

import os
import socket
import sys
import threading


def main():
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as far:

        def down():
            while data := far.recv(65536):
                os.write(1, data)
            os._exit(0)

        threading.Thread(target=down, daemon=True).start()
        while data := os.read(0, 65536):
            far.sendall(data)


if __name__ == "__main__":
    main()
