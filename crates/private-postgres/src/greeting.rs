//! Checks the server on the socket before a client sends its password.
//!
//! The check connects, reads the authentication request and disconnects. The listening process must belong to the
//! account and request SCRAM. The check is necessary because the client library also sends a password in clear text if
//! a server requests it.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::account::Account;
use crate::{DATABASE, Error, ROLE, socket};

/// The time limit of a whole check. A busy server may be slow.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two attempts to connect while the listener's queue is full.
const POLL: Duration = Duration::from_millis(20);

/// The largest size of an authentication request, which contains the names of a few mechanisms.
const ANSWER_MAX_BYTES: usize = 1024;

const MECHANISM: &[u8] = b"SCRAM-SHA-256";

/// Refuses a listener in this folder if it is not a process of the account, or if it does not request SCRAM. Succeeds
/// if no process listens.
pub(super) fn require_scram(socket_folder: &Path, account: &Account) -> Result<(), Error> {
    match greet(&socket::path(socket_folder), account.uid(), GREETING_TIMEOUT) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Error::Impostor { folder: socket_folder.to_owned(), why }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(()),
        Err(error) => Err(Error::file("check the server in", socket_folder)(error)),
    }
}

/// Checks the listener. Returns the reason why it must not get the password, or `None` if it may.
fn greet(socket: &Path, uid: u32, timeout: Duration) -> io::Result<Option<String>> {
    // The path is not followed, because a link could lead to another user's socket.
    let found = std::fs::symlink_metadata(socket)?;
    if !found.file_type().is_socket() || found.uid() != uid {
        return Ok(Some(format!("is not a socket of user {uid}")));
    }
    let deadline = Instant::now() + timeout;
    let mut server = connect(socket, deadline)?;
    #[cfg(target_os = "linux")]
    {
        let listener = rustix::net::sockopt::socket_peercred(&server)?.uid.as_raw();
        if listener != uid {
            return Ok(Some(format!("belongs to a process of user {listener}, not {uid}")));
        }
    }
    server.set_write_timeout(Some(timeout))?;
    server.write_all(&startup_message())?;
    let mut head = [0; 5];
    read_exact(&mut server, &mut head, deadline)?;
    let [kind, length @ ..] = head;
    let length = (u32::from_be_bytes(length) as usize).saturating_sub(4);
    Ok(match kind {
        // The server returned an error, for example for too many connections. The client will get it too.
        b'E' => None,
        b'R' if length <= ANSWER_MAX_BYTES => {
            let mut request = vec![0; length];
            read_exact(&mut server, &mut request, deadline)?;
            refusal(&request)
        }
        _ => Some("doesn't speak the Postgres protocol".to_owned()),
    })
}

/// Connects until the deadline. A listener with a full queue could otherwise block for ever.
fn connect(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::unix(path)?;
    loop {
        match socket.connect(&address) {
            Err(full) if full.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            Err(full) if full.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            connected => {
                connected?;
                socket.set_nonblocking(false)?;
                return Ok(std::os::fd::OwnedFd::from(socket).into());
            }
        }
    }
}

/// Fills the buffer until the deadline, even if the bytes arrive slowly.
fn read_exact(server: &mut UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        server.set_read_timeout(Some(left))?;
        match server.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => buffer = &mut buffer[read..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Builds the startup message of the Postgres protocol 3.0, with role and database.
fn startup_message() -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(0x0003_0000_u32.to_be_bytes());
    for text in ["user", ROLE, "database", DATABASE, ""] {
        message.extend(text.as_bytes());
        message.push(0);
    }
    let length = (message.len() as u32).to_be_bytes();
    message[..4].copy_from_slice(&length);
    message
}

/// Returns the reason why an authentication request is refused, or `None` if it requests SCRAM.
fn refusal(request: &[u8]) -> Option<String> {
    let (code, rest) = request.split_at_checked(4)?;
    Some(match u32::from_be_bytes(code.try_into().ok()?) {
        10 if rest.split(|byte| *byte == 0).any(|mechanism| mechanism == MECHANISM) => return None,
        0 => "asks for no password".to_owned(),
        3 => "asks for the password in clear text".to_owned(),
        5 => "asks for the password as MD5".to_owned(),
        other => format!("asks for authentication {other}"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Checks a server that sends this answer. Returns the reason of a refusal, and the bytes that the server received
    /// after the startup message.
    fn refused(answer: &[u8]) -> (Option<String>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = answer.to_owned();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut greeting = vec![0; startup_message().len()];
            client.read_exact(&mut greeting).unwrap();
            assert_eq!(greeting, startup_message());
            client.write_all(&answer).unwrap();
            let mut rest = Vec::new();
            // The client may have closed the connection early.
            let _ = client.read_to_end(&mut rest);
            rest
        });
        let why = greet(&path, nix::unistd::geteuid().as_raw(), GREETING_TIMEOUT).unwrap();
        (why, server.join().unwrap())
    }

    fn request(code: u32, rest: &[u8]) -> Vec<u8> {
        [b"R", &(8 + rest.len() as u32).to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
    }

    #[test]
    fn server_that_does_not_request_scram_is_refused() {
        for (answer, why) in [
            (request(3, b""), "clear text"),
            (request(5, b"salt"), "MD5"),
            (request(0, b""), "no password"),
            (request(7, b""), "authentication 7"),
            (request(10, b"SCRAM-SHA-1\0\0"), "authentication 10"),
            (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), "doesn't speak"),
            ([b"R", &u32::MAX.to_be_bytes()[..]].concat(), "doesn't speak"),
        ] {
            let (refusal, sent) = refused(&answer);
            assert!(refusal.as_ref().is_some_and(|said| said.contains(why)), "{refusal:?}");
            assert_eq!(sent, b"");
        }
        let (refusal, sent) = refused(&request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"));
        assert_eq!((refusal, sent), (None, Vec::new()));
    }

    #[test]
    fn slow_server_and_full_queue_time_out() {
        let folder = tempfile::tempdir().unwrap();
        let (own, short) = (nix::unistd::geteuid().as_raw(), Duration::from_millis(300));
        let timed_out = |path: &Path| {
            let error = greet(path, own, short).unwrap_err();
            assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        };
        let full = folder.path().join("full");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&full).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = UnixStream::connect(&full).unwrap();
        timed_out(&full);

        let slow = folder.path().join("slow");
        let listener = UnixListener::bind(&slow).unwrap();
        // Each byte arrives long before the timeout of a read. All bytes together exceed the deadline.
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let trickle = request(10, &[0; 1000]);
            trickle
                .chunks(1)
                .take_while(|byte| {
                    std::thread::sleep(Duration::from_millis(20));
                    client.write_all(byte).is_ok()
                })
                .count()
        });
        timed_out(&slow);
        assert!(server.join().unwrap() < 1000);
    }

    #[test]
    fn listener_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let other = nix::unistd::geteuid().as_raw() + 1;
        assert!(greet(&path, other, GREETING_TIMEOUT).unwrap().is_some());
        if nix::unistd::geteuid().is_root() {
            // The owner of the socket file may differ from the owner of the listening process.
            std::os::unix::fs::chown(&path, Some(other), None).unwrap();
            assert!(greet(&path, other, GREETING_TIMEOUT).unwrap().unwrap().contains("process of user 0"));
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(greet(&link, nix::unistd::geteuid().as_raw(), GREETING_TIMEOUT).unwrap().is_some());
    }
}
