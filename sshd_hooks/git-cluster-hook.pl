#!/usr/bin/perl
# What sshd runs for git-cluster, three times for each connection: so this is Perl without a module, which starts in
# one millisecond where Python takes five. git-cluster-hook.py is the same for where Perl is not, or is not of 64 bits.
#
#     git-cluster-hook keys TYPE KEY          AuthorizedKeysCommand: the line that lets this key in, or nothing
#     git-cluster-hook serve WHO...           the forced command of that line: what the client asked for
#
# With the device's daemon up, the request goes to it over a Unix socket; "serve" hands over standard input, output and
# error with it, and waits for the exit code. Without a daemon, git-cluster itself does the work in place of this
# process. `git-cluster sshd install` writes a copy with the values below as this device has them.

my @PROGRAM = ('/usr/local/bin/git-cluster');
my $CONFIG = '/etc/git-cluster/config.toml';
my $RUN = '/var/lib/git-cluster/run';
my $SENDMSG = 46;  # the number of this system call: Perl has no name for it

my $ANSWER = 10;  # seconds, by far; sshd lets whoever it refuses wait for up to as long again, of 30 in all

# Linux's numbers: the module that names them takes longer than all else.
my ($AF_UNIX, $SOCK_STREAM, $SOL_SOCKET, $SCM_RIGHTS, $MSG_NOSIGNAL) = (1, 1, 1, 1, 0x4000);

my ($verb, @words) = @ARGV;
unless (@ARGV && ($verb eq 'keys' || $verb eq 'serve')) {
    fail('git-cluster-hook is run by sshd, as AuthorizedKeysCommand and as the forced command of a key');
}
my @request = $verb eq 'keys'
    ? ($0, @words)  # the line has to name this program
    : (@words, map { defined $ENV{$_} ? "=$ENV{$_}" : '-' } 'SSH_ORIGINAL_COMMAND', 'GIT_PROTOCOL', 'SSH_CONNECTION');
my $request = join("\0", $verb, @request);

$SIG{ALRM} = \&no_answer;
alarm $ANSWER;
unless (socket(DAEMON, $AF_UNIX, $SOCK_STREAM, 0)
    && chdir($RUN)  # the path of a socket has 108 bytes at the most
    && connect(DAEMON, pack('S a*', $AF_UNIX, 'sshd.sock'))) {
    without_daemon();
}
$request = pack('N', length $request) . $request;
defined send(DAEMON, $request, $MSG_NOSIGNAL) or no_answer();
my $taken = '';
defined sysread(DAEMON, $taken, 1) or no_answer();
$taken eq '+' or fail("this device's git-cluster did not take the request; try again in a moment");
if ($verb eq 'keys') {
    while (sysread(DAEMON, my $line, 65536)) {
        syswrite(STDOUT, $line);
    }
    exit 0;
}
hand_over() or no_answer();
alarm 0;
close(STDIN);  # so that the far ends notice when the daemon is done with them
close(STDOUT);
sysread(DAEMON, my $code, 1)
    or fail("this device's git-cluster ended in the middle of the request; look whether it was done, then try again");
exit ord $code;

# Descriptors 0, 1 and 2, with a byte. Only to a daemon that has answered: what is on its way to one that does not stays
# open, and sshd would wait for its end.
sub hand_over {
    my $byte = 'f';
    my $iovec = pack('P J', $byte, 1);
    my $control = pack('J i i i3 x4', 28, $SOL_SOCKET, $SCM_RIGHTS, 0, 1, 2);  # struct cmsghdr, filled up to 8 bytes
    my $message = pack('x16 P J P J x8', $iovec, 1, $control, length $control);  # struct msghdr
    return syscall($SENDMSG, fileno(DAEMON), $message, $MSG_NOSIGNAL) == 1;
}

sub without_daemon {
    alarm 0;
    exec(@PROGRAM, '--config', $CONFIG, 'sshd', $verb, '--', $verb eq 'keys' ? $0 : (), @words)
        or fail("git-cluster cannot be started on this device: $!; an administrator can mend that");
}

sub no_answer {
    fail("this device's git-cluster does not answer; try again in a moment");
}

sub fail {
    syswrite(STDERR, "remote: cluster: error: $_[0]\n");
    exit 1;
}
