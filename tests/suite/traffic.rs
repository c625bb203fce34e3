//! The round trips between a service and its database, as the proxy of `network` passes them on (PostgreSQL
//! documentation, "Message Formats").

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

/// The round trips of all connections since they were last taken.
#[derive(Clone, Default)]
pub(crate) struct Traffic(Arc<Mutex<Vec<RoundTrip>>>);

/// Everything that one connection sent before the server answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoundTrip {
    /// The statements that were executed, by the names in their first lines.
    pub(crate) statements: Vec<String>,
    /// A statement was prepared, or a connection was opened.
    pub(crate) prepares: bool,
}

impl RoundTrip {
    /// Returns the statements, or the other purpose of the round trip.
    fn purpose(&self) -> String {
        match (self.statements.is_empty(), self.prepares) {
            (false, _) => self.statements.join(" + "),
            (true, true) => "(prepares or connects)".to_owned(),
            (true, false) => "(ping)".to_owned(),
        }
    }
}

/// Returns how often each purpose occurs, for the text of a failure.
pub(crate) fn purposes(trips: &[RoundTrip]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for trip in trips {
        *counts.entry(trip.purpose()).or_default() += 1;
    }
    counts
}

impl Traffic {
    pub(crate) fn take(&self) -> Vec<RoundTrip> {
        std::mem::take(&mut self.trips())
    }

    pub(crate) fn conversation(&self) -> Conversation {
        Conversation { traffic: self.clone(), connection: Arc::default() }
    }

    fn trips(&self) -> MutexGuard<'_, Vec<RoundTrip>> {
        self.0.lock().unwrap()
    }
}

/// The messages of one connection.
#[derive(Clone)]
pub(crate) struct Conversation {
    traffic: Traffic,
    connection: Arc<Mutex<Connection>>,
}

#[derive(Default)]
struct Connection {
    /// The first message, which has no type, was read.
    is_begun: bool,
    /// The server has not answered what was sent last.
    is_asking: bool,
    /// The part of a message whose rest is still to come.
    unread: Vec<u8>,
    /// The statements that were prepared, by their names in the protocol.
    prepared: HashMap<String, String>,
    bound: String,
}

impl Conversation {
    /// The server has sent something.
    pub(crate) fn answered(&self) {
        self.connection.lock().unwrap().is_asking = false;
    }

    /// The client has sent these bytes.
    pub(crate) fn asked(&self, bytes: &[u8]) {
        let mut connection = self.connection.lock().unwrap();
        connection.unread.extend_from_slice(bytes);
        let mut said = RoundTrip::default();
        let mut ends = false;
        while let Some((kind, body)) = connection.next_message() {
            let mut texts = body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
            let mut text = || texts.next().unwrap_or_default();
            match kind {
                b'P' => {
                    let (name, statement) = (text(), text());
                    connection.prepared.insert(name, title(&statement));
                    said.prepares = true;
                }
                b'B' => {
                    let (_portal, name) = (text(), text());
                    connection.bound = connection.prepared.get(&name).cloned().unwrap_or_default();
                }
                b'E' => said.statements.push(connection.bound.clone()),
                b'Q' => said.statements.push(title(&text())),
                b'X' => ends = true,
                b'S' | b'C' | b'D' | b'H' | b'd' | b'c' => {}
                _ => said.prepares = true,
            }
        }
        let mut trips = self.traffic.trips();
        match trips.last_mut().filter(|_| connection.is_asking) {
            // The rest of what it was asking. Another connection may have begun since, which only a failure's text
            // shows.
            Some(last) => last.statements.extend(said.statements),
            None if ends => {}
            None => trips.push(said),
        }
        connection.is_asking = true;
    }
}

impl Connection {
    /// Returns the type and the body of the next message that is complete.
    fn next_message(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = usize::from(self.is_begun);
        let length = self.unread.get(head..head + 4)?;
        let end = head + u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let message: Vec<u8> = self.unread.get(..end)?.to_vec();
        self.unread.drain(..end);
        let kind = if self.is_begun { message[0] } else { 0 };
        self.is_begun = true;
        Some((kind, message[head + 4..].to_vec()))
    }
}

/// Returns the name in the first line of a statement, or the beginning of one without a name.
fn title(statement: &str) -> String {
    let line = statement.lines().next().unwrap_or_default();
    line.trim_start_matches("-- ").chars().take(50).collect()
}
