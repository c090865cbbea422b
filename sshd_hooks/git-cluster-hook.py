#!/usr/bin/python3 -IS
"""What sshd runs for git-cluster, three times for each connection: so it imports next to nothing. git-cluster-hook.pl
is the same in Perl, for where that can do it: it starts faster.

    git-cluster-hook keys TYPE KEY          AuthorizedKeysCommand: the line that lets this key in, or nothing
    git-cluster-hook serve WHO…             the forced command of that line: what the client asked for

With the device's daemon up, the request goes to it over a Unix socket; "serve" hands over standard input, output and
error with it, and waits for the exit code. Without a daemon, git-cluster itself does the work in place of this
process. `git-cluster sshd install` writes a copy with the values below as this device has them.
"""

import _socket
import posix
import sys

PROGRAM = ("/usr/local/bin/git-cluster",)
CONFIG = "/etc/git-cluster/config.toml"
RUN = "/var/lib/git-cluster/run"

ANSWER = 10.0  # seconds, by far; sshd lets whoever it refuses wait for up to as long again, of 30 in all


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ("keys", "serve"):
        fail("git-cluster-hook is run by sshd, as AuthorizedKeysCommand and as the forced command of a key")
    environ = posix.environ
    words = [word.encode(errors="surrogateescape") for word in sys.argv[1:]]
    if words[0] == b"keys":
        words.insert(1, sys.argv[0].encode(errors="surrogateescape"))  # what the line has to name
    else:
        for name in (b"SSH_ORIGINAL_COMMAND", b"GIT_PROTOCOL", b"SSH_CONNECTION"):
            words += [b"-" if environ.get(name) is None else b"=" + environ[name]]
    daemon = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    daemon.settimeout(ANSWER)
    try:
        posix.chdir(RUN)  # the path of a socket has 108 bytes at the most
        daemon.connect("sshd.sock")
    except OSError:
        without_daemon(environ)
    request = b"\0".join(words)
    try:
        daemon.sendall(len(request).to_bytes(4, "big") + request)
        if daemon.recv(1) != b"+":
            fail("this device's git-cluster did not take the request; try again in a moment")
        if sys.argv[1] == "keys":
            while data := daemon.recv(65536):
                posix.write(1, data)
            posix._exit(0)
        hand_over(daemon)
        posix.close(0)  # so that the far ends notice when the daemon is done with them
        posix.close(1)
        daemon.settimeout(None)
        code = daemon.recv(1)
    except OSError:
        fail("this device's git-cluster does not answer; try again in a moment")
    if not code:
        fail(
            "this device's git-cluster ended in the middle of the request; look whether it was done, then try again"
        )
    posix._exit(code[0])


def hand_over(daemon):
    """Descriptors 0, 1 and 2, with a byte. Only to a daemon that has answered: what is on its way to one that does not
    stays open, and sshd would wait for its end."""
    fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
    daemon.sendmsg([b"f"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])


def without_daemon(environ):
    verb, *words = sys.argv[1:]
    hook = [sys.argv[0]] if verb == "keys" else []
    words = [*PROGRAM, "--config", CONFIG, "sshd", verb, "--", *hook, *words]
    try:
        posix.execve(PROGRAM[0], words, environ)
    except OSError as error:
        fail(
            f"git-cluster cannot be started on this device: {error.strerror}; an administrator can mend that"
        )


def fail(why):
    posix.write(2, f"remote: cluster: error: {why}\n".encode(errors="replace"))
    posix._exit(1)


main()
