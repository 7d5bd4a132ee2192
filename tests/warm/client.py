"""Takes the place of `python` and runs a command as a fork of the warm server.

usage: python -I -S client.py [-u] SCRIPT|-m MODULE [argument ...]

The fork gets this process's arguments, environment, directory and standard streams. This process passes signals on to
it, and ends with its exit code or signal. If this process is killed, the server kills the fork. TEMPO_WARM_SERVER names
the server's socket. Only modules of the standard library are imported here, so that a start takes 20 milliseconds.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Return the exit code of the command. If a signal ended the command, this process ends by the same signal."""
    request = {"argv": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd(), "pid": os.getpid()}
    text = json.dumps(request).encode()
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["TEMPO_WARM_SERVER"])
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: server.sendall(bytes([received])))
    socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(text)
    answer = server.recv(4)
    if len(answer) < 4:
        print("the warm server ended before the command did", file=sys.stderr)
        return 1
    code = int.from_bytes(answer, "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:  # which has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
