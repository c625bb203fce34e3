//! The kinds of receivers of events: their blocks in the operator's file, their secrets and their transports.
//!
//! A kind is a child module whose receivers implement [`Receiver`], and one line of [`KINDS`]. `config` calls
//! [`Receivers::read`] and [`Receivers::read_secrets`]; `command` passes the built transports to `delivery`, which
//! decides when an event is sent. A kind knows no other kind, and no job beyond the event that it sends.

#[cfg(feature = "amqp")]
mod amqp;
mod webhook;

use std::fmt::{Debug, Display};
use std::str::FromStr;

use crate::catalog::Catalog;
use crate::catalog::block::{Block, Names};
use crate::catalog::listener::KnownNames;
use crate::catalog::mistake::Mistakes;
use crate::delivery::Transport;
use crate::event::Listener;

/// All kinds, in the order in which their blocks are read. A new kind is one line here.
static KINDS: [Kind; 2] = [
    Kind { block: "webhook", plural: "webhooks", parse: webhook::parse },
    #[cfg(feature = "amqp")]
    Kind { block: "amqp", plural: "brokers", parse: amqp::parse },
    #[cfg(not(feature = "amqp"))]
    Kind { block: "amqp", plural: "brokers", parse: refuse_amqp },
];

struct Kind {
    /// The name of a block: `webhook` for `[[webhook]]`.
    block: &'static str,
    /// The word for several receivers of this kind.
    plural: &'static str,
    /// Reads one block, and records each fault in it. Returns `None` if a member that the receiver needs is missing or
    /// wrong.
    parse: fn(&mut Block<'_, '_>, &KnownNames<'_>) -> Option<Box<dyn Receiver>>,
}

/// A receiver of events, as its block describes it.
trait Receiver: Debug + Send + Sync {
    fn listener(&self) -> &Listener;

    /// Reads its secret.
    ///
    /// # Errors
    /// If the secret is unset or wrong. The error has the block, the variable and the reason, without the secret.
    fn read_secret(&mut self, variables: &SecretVariables<'_>) -> Result<(), String>;

    /// Builds its transport. Returns `None` if its secret has not been read.
    fn transport(&self) -> Option<Box<dyn Transport>>;
}

/// The variables of the environment, by name.
pub struct SecretVariables<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl SecretVariables<'_> {
    /// Parses the variable that a block names. `noun` says what the variable contains.
    ///
    /// # Errors
    /// If the variable is unset or wrong. The error names block and variable, and doesn't quote the value.
    pub fn parse<T>(&self, block: &str, variable: &str, noun: &str) -> Result<T, String>
    where
        T: FromStr<Err: Display>,
    {
        match (self.0)(variable) {
            Some(text) => text.parse().map_err(|why| format!("{block}: {variable}: {why}")),
            None => Err(format!("{block}: the variable {variable}, which has its {noun}, is unset")),
        }
    }
}

#[derive(Debug, Default)]
pub struct Receivers {
    /// The receivers, by kind and then in the order of the file.
    all: Vec<Box<dyn Receiver>>,
    names: Names,
}

impl Receivers {
    /// Reads the operator's file. No secret may be in a variable for which `is_setting` returns true.
    pub fn read(text: &str, is_setting: impl Fn(&str) -> bool) -> Result<(Catalog, Receivers), Mistakes> {
        let mut all: Vec<Box<dyn Receiver>> = Vec::new();
        // All kinds share these names: a delivery names its receiver by the name alone.
        let mut names = Names::default();
        let blocks: Vec<_> = KINDS.iter().map(|kind| kind.block).collect();
        let catalog = Catalog::with_receivers(text, &blocks, is_setting, |file, known| {
            for kind in &KINDS {
                file.each_block(kind.block, &mut names, |block| all.extend((kind.parse)(block, known)));
            }
            all.iter().map(|receiver| receiver.listener().clone()).collect()
        })?;
        Ok((catalog, Receivers { all, names }))
    }

    /// Returns true if two texts of the operator's file have different receivers.
    pub fn differ(one: &str, other: &str) -> bool {
        let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
        let (one, other) = (read(one), read(other));
        KINDS.iter().any(|kind| one.get(kind.block) != other.get(kind.block))
    }

    /// Reads the secrets of all receivers. Returns the error of each secret that is unset or wrong.
    pub fn read_secrets(&mut self, variables: &SecretVariables<'_>) -> Vec<String> {
        self.all.iter_mut().filter_map(|receiver| receiver.read_secret(variables).err()).collect()
    }

    /// The names of all receivers: for each kind its plural word, and the names in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, Vec<&str>)> {
        KINDS.iter().map(|kind| (kind.plural, self.names.of_kind(kind.block)))
    }

    /// Builds a transport for each receiver that has its secret, with the events that it gets.
    pub fn build(&self) -> Vec<(Listener, Box<dyn Transport>)> {
        self.all.iter().filter_map(|receiver| Some((receiver.listener().clone(), receiver.transport()?))).collect()
    }
}

/// Refuses a block of a kind that this build doesn't have.
#[cfg(not(feature = "amqp"))]
fn refuse_amqp(block: &mut Block<'_, '_>, _known: &KnownNames<'_>) -> Option<Box<dyn Receiver>> {
    block.refuse_unread("this build has no AMQP: build it with `cargo build --release --features full`");
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::assert_lines;

    #[test]
    fn the_faults_of_all_kinds_of_blocks_are_reported_together() {
        let text = "[[dataset]]
name = \"a\"
colums = []
[[webhook]]
name = \"hook\"
url = 5
secret_env = \"DATABASE_URL\"
[[amqp]]
name = \"hook\"
[[webhooks]]
";
        let found = Receivers::read(text, |name| name == "DATABASE_URL").unwrap_err().to_string();
        let expected = [
            "line 10: unknown field `webhooks`, expected one of `dataset`, `tables`, `webhook`, `amqp`, ",
            "line 3: unknown field `colums`, expected one of `name`, `table`, `key`, `columns`, `exclude`, ",
            "line 1: dataset: missing field `table`",
            "line 6: webhook.url: invalid type: integer `5`, expected a string",
            "line 7: webhook hook: secret_env: DATABASE_URL is a setting of the service",
            "line 8: amqp hook: there is a webhook of this name already",
        ];
        assert_lines(&found, &expected);
    }
}
