//! Shows that a CRIU works on this kernel: a process tree that holds both ends of an open TCP connection is dumped and
//! restored, with bytes still queued in the connection, and then must answer over it.
//!
//! `criu check` says `Looks good` for versions that cannot dump any socket here, so only this test is believed. It must
//! never leave anything behind: it runs in network, process and mount name spaces of its own that die with their first
//! process, and all its files are on a tmpfs of that mount name space. `find.rs` beside this file chooses what to test.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The longest the whole test may take, in seconds; a quiet machine needs a third of one.
const SECONDS_MAX: &str = "60";

/// What a passed test showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfTest {
    /// From the start of the name spaces to the answer of the restored program.
    pub elapsed: Duration,
}

/// Why a CRIU did not pass. The host is as it was before the test.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// A program that the test needs could not be started. Install it.
    #[error("the self-test of {} could not start `timeout` and `unshare` ({source}); both are in every Debian (coreutils, util-linux)", .criu.display())]
    NotStarted {
        /// The CRIU under test.
        criu: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A step failed. The reason is CRIU's own where CRIU gave one.
    #[error("{} failed its self-test while it was to {step}: {reason}", .criu.display())]
    Failed {
        /// The CRIU under test.
        criu: PathBuf,
        /// The step, as words that complete the sentence.
        step: String,
        /// The last error that was printed.
        reason: String,
    },
    /// A step did not end in time.
    #[error("{} failed its self-test: it did not {step} within {SECONDS_MAX} s", .criu.display())]
    TimedOut {
        /// The CRIU under test.
        criu: PathBuf,
        /// The step, as words that complete the sentence.
        step: String,
    },
}

/// Dumps and restores a small program with an open TCP connection; needs root, `unshare`, `ip` and `perl`.
pub fn self_test(criu: &Path) -> Result<SelfTest, SelfTestError> {
    let started = Instant::now();
    let output = Command::new("timeout")
        .args(["--signal=KILL", SECONDS_MAX])
        .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["/bin/sh", "-c", DRIVER, "steadfast-self-test"])
        .arg(criu)
        .arg(PROGRAM)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| SelfTestError::NotStarted { criu: criu.to_owned(), source })?;
    judge(criu, &output)?;
    Ok(SelfTest { elapsed: started.elapsed() })
}

fn judge(criu: &Path, output: &Output) -> Result<(), SelfTestError> {
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.lines().any(|line| line == PASSED) {
        return Ok(());
    }
    let step = said.lines().filter_map(|line| line.strip_prefix("step: ")).next_back();
    let step = step.unwrap_or("make its name spaces").to_owned();
    // `timeout` kills itself with the signal it was told to send.
    if output.status.code().is_none() {
        return Err(SelfTestError::TimedOut { criu: criu.to_owned(), step });
    }
    let complaints = String::from_utf8_lossy(&output.stderr);
    Err(SelfTestError::Failed { criu: criu.to_owned(), step, reason: reason(&complaints) })
}

/// CRIU reports the cause first and its consequences after it, so the first error line is the one to show; but it also
/// calls it an error, and goes on, when it may not raise its own limit of open files.
fn reason(complaints: &str) -> String {
    let cause = complaints.lines().find(|line| line.contains("Error") && !line.contains("RLIMIT_NOFILE"));
    let line = cause.or_else(|| complaints.lines().rfind(|line| !line.trim().is_empty()));
    line.unwrap_or("no reason was printed").trim().to_owned()
}

const PASSED: &str = "passed";

/// The first process of the name spaces. `/run` becomes a tmpfs, where CRIU also keeps what it learns of the kernel.
/// The restore gets a process name space of its own, because the numbers of the dumped processes may still be taken.
const DRIVER: &str = r#"
set -eu
criu=$1 program=$2
mount -t tmpfs -o size=64m,mode=0700 steadfast-self-test /run
cd /run
mkdir images
mkfifo ready go answer
echo 'step: start a program with an open TCP connection'
for needed in perl ip setsid; do
    command -v "$needed" >/dev/null || { echo "Error: the self-test needs $needed; install it" >&2; exit 1; }
done
ip link set lo up
setsid perl -e "$program" </dev/null >/dev/null 2>&1 &
dumped=$!
read -r word <ready
echo 'step: dump a program with an open TCP connection'
"$criu" dump --tree "$dumped" --images-dir images --tcp-established --network-lock nftables
[ -s images/inventory.img ] || { echo "Error: the dump made no image" >&2; exit 1; }
wait "$dumped" || true
echo 'step: restore a program with an open TCP connection'
( unshare --pid --fork --kill-child --mount-proc \
    "$criu" restore --images-dir images --tcp-established </dev/null || echo 'not restored' >answer ) &
( echo go >go ) &
read -r told <answer
[ "$told" != 'not restored' ] || exit 1
echo 'step: carry bytes over the restored TCP connection'
[ "$told" = 'queued-before answered-after' ] || { echo "Error: the program said '$told'" >&2; exit 1; }
echo passed
"#;

/// Both ends of one connection in two processes. What our own caller left open is closed first: it may lie on a mount
/// that CRIU cannot see. At the dump the server has not read what the client sent, and the
/// client waits inside the kernel for the answer.
const PROGRAM: &str = r#"
use strict;
use POSIX ();
use Socket;
POSIX::close($_) for 3 .. 1023;
sub say_to { my ($path, $text) = @_; open(my $f, '>', $path) or die "$path: $!"; print $f "$text\n"; close($f); }
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
bind($listener, sockaddr_in(0, INADDR_LOOPBACK)) or die "bind: $!";
listen($listener, 1) or die "listen: $!";
socket(my $client, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
connect($client, getsockname($listener)) or die "connect: $!";
accept(my $server, $listener) or die "accept: $!";
syswrite($client, 'queued-before') or die "send: $!";
my $child = fork();
defined($child) or die "fork: $!";
if ($child == 0) {
    close($server);
    sysread($client, my $reply, 64) or die "receive: $!";
    say_to('answer', $reply);
    exit(0);
}
close($client);
say_to('ready', 'ready');
open(my $go, '<', 'go') or die "go: $!";
<$go>;
sysread($server, my $request, 64) or die "receive: $!";
syswrite($server, "$request answered-after") or die "send: $!";
waitpid($child, 0);
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_reason() {
        let complaints = "Error (u): rlimit: Can't setup RLIMIT_NOFILE for self\nWarn  (x): slow\nError (a): Can't get 1:16 opt\nError (b): Dumping FAILED.\n";
        assert_eq!(reason(complaints), "Error (a): Can't get 1:16 opt");
        assert_eq!(reason("unshare: not allowed\n\n"), "unshare: not allowed");
        assert_eq!(reason(""), "no reason was printed");
    }

    #[test]
    fn the_criu_of_this_host_passes() {
        let criu = super::super::find::find_criu(None).unwrap();
        self_test(&criu).unwrap();
    }

    #[test]
    fn a_program_that_is_not_criu_fails_at_the_dump() {
        let error = self_test(Path::new("/bin/true")).unwrap_err();
        let SelfTestError::Failed { step, .. } = error else { panic!("{error}") };
        assert!(step.starts_with("dump"), "{step}");
    }
}
