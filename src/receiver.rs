//! The kinds of receivers of events: their blocks in the operator's file, their secrets and their transports.
//!
//! A kind is a child module that implements [`ReceiverKind`], and one line of [`kinds`]. `config` calls
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
#[cfg(feature = "amqp")]
use crate::receiver::amqp::Brokers;
use crate::receiver::webhook::Webhooks;

/// Returns all kinds, in the order in which their blocks are read. A new kind is one line here.
fn kinds() -> Vec<Box<dyn ReceiverKind>> {
    Vec::from([
        Box::new(Webhooks::default()) as Box<dyn ReceiverKind>,
        #[cfg(feature = "amqp")]
        Box::new(Brokers::default()),
        #[cfg(not(feature = "amqp"))]
        Box::new(NotBuilt { block: "amqp", name: "AMQP" }),
    ])
}

/// The receivers of one kind.
///
/// The three steps are called in this order: `parse` for each block, `read_secrets` once, then `build`.
pub trait ReceiverKind: Debug + Send + Sync {
    /// The name of a block: `webhook` for `[[webhook]]`.
    fn block(&self) -> &'static str;

    /// The word for several receivers of this kind: `webhooks`.
    fn plural(&self) -> &'static str;

    /// Reads one block, and adds its receiver. Records each fault in the block.
    fn parse(&mut self, block: &mut Block<'_, '_>, known: &Known<'_>);

    /// The receivers' names and the events that they get.
    fn listeners(&self) -> Vec<Listener>;

    /// Reads the secrets of all receivers. Returns a fault for each secret that is unset or wrong: the block, the
    /// variable and the reason, without the secret. A receiver with a fault has no transport.
    fn read_secrets(&mut self, variables: &SecretVariables<'_>) -> Vec<String>;

    /// Builds a transport for each receiver that has its secret, with the events that it gets.
    fn build(&self) -> Vec<(Listener, Box<dyn Transport>)>;
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
    kinds: Vec<Box<dyn ReceiverKind>>,
    names: Names,
}

impl Receivers {
    /// Reads the operator's file. No secret may be in a variable for which `is_setting` returns true.
    pub fn read(text: &str, is_setting: impl Fn(&str) -> bool) -> Result<(Catalog, Receivers), Mistakes> {
        let mut kinds = kinds();
        // All kinds share these names: a delivery names its receiver by the name alone.
        let mut names = Names::default();
        let blocks: Vec<_> = kinds.iter().map(|kind| kind.block()).collect();
        let catalog = Catalog::with_receivers(text, &blocks, is_setting, |file, known| {
            for kind in &mut kinds {
                file.each_block(kind.block(), &mut names, |block| kind.parse(block, known));
            }
            kinds.iter().flat_map(|kind| kind.listeners()).collect()
        })?;
        Ok((catalog, Receivers { kinds, names }))
    }

    /// Returns true if two texts of the operator's file have different receivers.
    pub fn differ(one: &str, other: &str) -> bool {
        let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
        let (one, other) = (read(one), read(other));
        kinds().iter().any(|kind| one.get(kind.block()) != other.get(kind.block()))
    }

    pub fn read_secrets(&mut self, variables: &SecretVariables<'_>) -> Vec<String> {
        self.kinds.iter_mut().flat_map(|kind| kind.read_secrets(variables)).collect()
    }

    /// The names of all receivers: for each kind its plural word, and the names in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, Vec<&str>)> {
        self.kinds.iter().map(|kind| (kind.plural(), self.names.of_kind(kind.block())))
    }

    pub fn build(&self) -> Vec<(Listener, Box<dyn Transport>)> {
        self.kinds.iter().flat_map(|kind| kind.build()).collect()
    }
}

/// A kind that this build doesn't have. Each of its blocks is refused.
#[cfg(not(feature = "amqp"))]
#[derive(Debug)]
struct NotBuilt {
    block: &'static str,
    name: &'static str,
}

#[cfg(not(feature = "amqp"))]
impl ReceiverKind for NotBuilt {
    fn block(&self) -> &'static str {
        self.block
    }

    fn plural(&self) -> &'static str {
        self.name
    }

    fn parse(&mut self, block: &mut Block<'_, '_>, _known: &Known<'_>) {
        let build = "build it with `cargo build --release --features full`";
        block.refuse_unread(format!("this build has no {}: {build}", self.name));
    }

    fn listeners(&self) -> Vec<Listener> {
        Vec::new()
    }

    fn read_secrets(&mut self, _variables: &SecretVariables<'_>) -> Vec<String> {
        Vec::new()
    }

    fn build(&self) -> Vec<(Listener, Box<dyn Transport>)> {
        Vec::new()
    }
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
