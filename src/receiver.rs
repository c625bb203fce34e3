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

use crate::dataset::block::{Block, Names};
use crate::dataset::catalog::Catalog;
use crate::dataset::fault::Mistakes;
use crate::dataset::listener::Known;
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

/// A kind of receivers.
struct Kind {
    /// The name of a block: `webhook` for `[[webhook]]`.
    block: &'static str,
    /// The word for several receivers of this kind.
    plural: &'static str,
    /// Reads one block, and records each fault in it. Returns `None` if a member that the receiver needs is missing or
    /// wrong.
    parse: fn(&mut Block<'_, '_>, &Known<'_>) -> Option<Box<dyn Receiver>>,
}

/// A receiver of events, as its block describes it.
trait Receiver: Debug + Send + Sync {
    /// Returns its name and the events that it gets.
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

/// All receivers of the operator's file.
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
fn refuse_amqp(block: &mut Block<'_, '_>, _known: &Known<'_>) -> Option<Box<dyn Receiver>> {
    block.refuse_unread("this build has no AMQP: build it with `cargo build --release --features full`");
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::assert_lines;

    fn wrong(text: &str) -> String {
        Receivers::read(text, |_| false).unwrap_err().to_string()
    }

    #[test]
    fn a_value_of_another_type_is_reported_with_its_member() {
        let dataset = "[[dataset]]\nname = \"a\"\ntable = \"a\"\n";
        for (text, expected) in [
            ("[[schedule]]\nname = \"a\"\nevery = 10", "line 6: schedule.every: invalid type: integer `10`, expected"),
            ("[[schedule]]\nheal = \"yes\"", "line 5: schedule.heal: invalid type: string \"yes\", expected a boolean"),
            ("[webhook]\nname = \"a\"", "line 4: [webhook] is one of several: write [[webhook]]"),
            ("[[webhook]]\nname = \"a\"", "line 4: webhook: missing field `url`"),
            ("[[webhook]]\nevents = \"a\"", "line 5: webhook.events: invalid type: string \"a\", expected a sequence"),
            #[cfg(feature = "amqp")]
            ("[[amqp]]\nevents = [1]", "line 5: amqp.events: invalid type: integer `1`, expected a string"),
            (
                "[[schedules]]\nname = \"a\"",
                "line 4: unknown field `schedules`, expected one of `dataset`, `tables`, `webhook`, `amqp`",
            ),
            ("x = [", "line 4: "),
        ] {
            let found = wrong(&format!("{dataset}{text}"));
            assert!(found.starts_with(expected), "{found}");
        }
        assert!(wrong("").starts_with("there is no [[dataset]] in it: "));
    }

    #[test]
    fn a_fault_in_one_block_hides_no_fault_of_another_block() {
        let found = wrong(
            "[[dataset]]
name = \"a\"
table = \"a\"
colums = []
max_file_bytes = \"1GB\"
[[dataset]]
table = \"b\"
[[webhook]]
name = \"hook\"
url = 5
secret_env = \"not a name\"
datasets = [\"a\"]
[[webhooks]]
",
        );
        let expected = [
            "line 13: unknown field `webhooks`, expected one of `dataset`, `tables`, `webhook`, `amqp`, `schedule`; is it `webhook`?",
            "line 5: dataset.max_file_bytes: invalid type: string \"1GB\", expected u64",
            "line 4: unknown field `colums`, expected one of `name`, `table`, `key`, `columns`, `exclude`, ",
            "line 6: dataset: missing field `name`",
            "line 10: webhook.url: invalid type: integer `5`, expected a string",
            "line 11: webhook hook: secret_env: the name of a variable",
        ];
        assert_lines(&found, &expected);
    }
}
