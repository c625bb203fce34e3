//! Reads the blocks of the operator's file: `[[dataset]]`, `[[webhook]]` and so on.
//!
//! A module that reads one kind of block asks a [`Block`] for each member by name and says what to do with its text.
//! The block finds members of another type, members that are missing, and members that nobody asked for. Each fault is
//! recorded with its line, and reading goes on. So the operator sees every fault of the file at once.
//!
//! Knows no kind of block.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, ValueDeserializer};

use crate::catalog::mistake::{Mistake, Mistakes};
use cdc_dataset::{Fault, hint};
use cdc_manifest::is_dataset_name;

/// The kind of block whose faults begin with its name alone.
pub(super) const DATASET: &str = "dataset";

/// The operator's file, and the faults that were found in it so far.
pub struct OperatorFile<'t> {
    text: &'t str,
    table: DeTable<'t>,
    mistakes: Vec<Mistake>,
}

impl<'t> OperatorFile<'t> {
    /// Parses a TOML text.
    ///
    /// # Errors
    /// With the first place that is no TOML.
    pub(super) fn parse(text: &'t str) -> Result<OperatorFile<'t>, Mistakes> {
        match DeTable::parse(text) {
            Ok(table) => Ok(OperatorFile { text, table: table.into_inner(), mistakes: Vec::new() }),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                Err(Mistakes(vec![Mistake::at(text, at, error.message())]))
            }
        }
    }

    /// Returns true if the file has nothing but comments.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn has(&self, kind: &str) -> bool {
        self.table.contains_key(kind)
    }

    /// Refuses every kind of block that is not one of these.
    pub(super) fn refuse_other_kinds(&mut self, kinds: &[&'static str]) {
        self.mistakes.extend(unknown_members(self.text, &self.table, kinds));
    }

    /// Calls `read` with each block of a kind, in the order of the file. A block whose name another block of `names`
    /// has is refused without being read.
    pub fn each_block(&mut self, kind: &'static str, names: &mut Names, mut read: impl FnMut(&mut Block<'_, 't>)) {
        self.each_unnamed_block(kind, |block| {
            block.read_name();
            match names.take(&block.name, kind) {
                Err(why) => block.refuse_unread(why),
                Ok(()) => read(block),
            }
        });
    }

    /// Calls `read` with each block of a kind whose blocks have no names, in the order of the file.
    pub(super) fn each_unnamed_block(&mut self, kind: &'static str, mut read: impl FnMut(&mut Block<'_, 't>)) {
        let Some(value) = self.table.get(kind) else { return };
        let Some(tables) = tables(value) else {
            let why = format!("[{kind}] is one of several: write [[{kind}]]");
            self.mistakes.push(Mistake::at(self.text, value.span().start, why));
            return;
        };
        for (start, members) in tables {
            let mut block = Block::new(self.text, kind, start, members);
            read(&mut block);
            if !block.is_unread {
                block.shape_faults.extend(unknown_members(self.text, members, &block.known));
            }
            self.mistakes.append(&mut block.shape_faults);
            self.mistakes.append(&mut block.faults);
        }
    }

    /// Refuses the whole file, if nothing else is wrong with it so far.
    pub(super) fn refuse_if_sound(&mut self, why: &str) {
        if self.mistakes.is_empty() {
            self.mistakes.push(Mistake::without_line(why));
        }
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes
    }

    /// A dataset's fault, with the line of the entry that it is about, else of the member, else of the dataset.
    pub(super) fn located(&self, fault: &Fault) -> Option<Mistake> {
        let tables = tables(self.table.get(DATASET)?)?;
        let is_it = |members: &DeTable<'_>| members.get("name")?.as_ref().as_str().map(|name| name == fault.dataset);
        let (start, members) = tables.into_iter().find(|(_, members)| is_it(members) == Some(true))?;
        let block = Block::new(self.text, DATASET, start, members);
        Some(Mistake::at(self.text, block.start_of(fault.member, fault.item.as_deref()), fault.to_string()))
    }
}

/// The tables of an array, and where each begins. `None` if the value is no array of tables.
fn tables<'a, 't>(value: &'a Spanned<DeValue<'t>>) -> Option<Vec<(usize, &'a DeTable<'t>)>> {
    let array = value.as_ref().as_array()?;
    array.iter().map(|entry| Some((entry.span().start, entry.as_ref().as_table()?))).collect()
}

/// The names that blocks have so far, in the order of the file, each with the kind of its block. No two blocks share a
/// name.
#[derive(Debug, Default)]
pub struct Names(Vec<(String, &'static str)>);

impl Names {
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The names of one kind of block, in the order of the file.
    pub fn of_kind(&self, kind: &str) -> Vec<&str> {
        self.0.iter().filter(|(_, other)| *other == kind).map(|(name, _)| name.as_str()).collect()
    }

    /// Adds a name that no block of the file has.
    pub(super) fn add(&mut self, name: &str, kind: &'static str) {
        self.0.push((name.to_owned(), kind));
    }

    fn take(&mut self, name: &str, kind: &'static str) -> Result<(), String> {
        if let Some((_, other)) = self.0.iter().find(|(taken, _)| taken == name) {
            let article = if other.starts_with('a') { "an" } else { "a" };
            return Err(format!("there is {article} {other} of this name already"));
        }
        // A block without a name is refused for that.
        if !name.is_empty() {
            self.add(name, kind);
        }
        Ok(())
    }
}

/// One block, while it is read. The reader asks for every member before it returns: a member that nobody asked for is
/// unknown.
pub struct Block<'a, 't> {
    /// Empty if the block says none.
    pub name: String,
    text: &'t str,
    kind: &'static str,
    start: usize,
    members: &'a DeTable<'t>,
    known: Vec<&'static str>,
    /// True if the reader refused the block without reading its members.
    is_unread: bool,
    /// Unknown members, and members of another type. Listed first, since other faults may follow from them.
    shape_faults: Vec<Mistake>,
    faults: Vec<Mistake>,
}

impl<'a, 't> Block<'a, 't> {
    fn new(text: &'t str, kind: &'static str, start: usize, members: &'a DeTable<'t>) -> Block<'a, 't> {
        let (name, known, shape_faults, faults) = (String::new(), Vec::new(), Vec::new(), Vec::new());
        Block { name, text, kind, start, members, known, is_unread: false, shape_faults, faults }
    }

    fn read_name(&mut self) {
        let Some(name) = self.required("name", str::parse::<String>) else { return };
        self.name = name;
        if !is_dataset_name(&self.name) {
            self.wrong("name", "1 to 63 characters of a-z 0-9 _ -, beginning with a letter, are expected");
        }
    }

    pub fn has(&self, member: &str) -> bool {
        self.members.contains_key(member)
    }

    /// Reads a member that has to be there. Returns `None` if it is missing or wrong.
    pub fn required<T, E: Display>(
        &mut self,
        member: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.has(member) {
            let why = format!("{}: missing field `{member}`", self.kind);
            self.faults.push(Mistake::at(self.text, self.start, why));
        }
        self.optional(member, parse)
    }

    /// Reads a member. Returns `None` if it isn't there or is wrong.
    pub(super) fn optional<T, E: Display>(
        &mut self,
        member: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text: String = self.value(member)?;
        parse(&text).map_err(|why| self.wrong(member, why)).ok()
    }

    /// Reads a member that has a default. Returns `None` if it is wrong.
    pub fn or_default<T, E: Display>(
        &mut self,
        member: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let found = self.optional(member, parse);
        if self.has(member) { found } else { Some(default) }
    }

    pub fn text(&mut self, member: &'static str) -> Option<String> {
        self.optional(member, str::parse::<String>)
    }

    pub(super) fn is_text(&self, member: &str) -> bool {
        self.members.get(member).is_some_and(|value| value.as_ref().as_str().is_some())
    }

    /// Reads a member that is one of two words, and returns true if it is the second one.
    pub(super) fn is_second(&mut self, member: &'static str, [first, second]: [&str; 2]) -> bool {
        let parse = |word: &str| match word {
            word if word == first => Ok(false),
            word if word == second => Ok(true),
            other => Err(format!("`{other}` is neither {first} nor {second}")),
        };
        self.optional(member, parse).unwrap_or(false)
    }

    pub fn flag(&mut self, member: &'static str, default: bool) -> bool {
        self.value(member).unwrap_or(default)
    }

    pub(super) fn number(&mut self, member: &'static str, range: &RangeInclusive<u64>) -> Option<u64> {
        let number = self.value(member)?;
        if !range.contains(&number) {
            self.wrong(member, format!("a number from {} to {} is expected", range.start(), range.end()));
        }
        Some(number)
    }

    /// Reads a list of texts. Returns the entries that are right, and `None` if the member isn't there.
    pub fn list<T, E: Display>(
        &mut self,
        member: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let entries: Vec<Spanned<String>> = self.value(member)?;
        if entries.is_empty() {
            self.wrong(member, "an empty list: leave it out");
        }
        let mut values = Vec::new();
        for entry in entries {
            match parse(entry.as_ref()) {
                Ok(value) => values.push(value),
                Err(why) => self.wrong_at(entry.span().start, member, why),
            }
        }
        Some(values)
    }

    /// Reads a table of texts. Returns the entries that are right, and `None` if the member isn't there.
    pub fn table<T, E: Display>(
        &mut self,
        member: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<BTreeMap<String, T>> {
        let entries: BTreeMap<String, Spanned<String>> = self.value(member)?;
        let mut values = BTreeMap::new();
        for (name, entry) in entries {
            match parse(entry.as_ref()) {
                Ok(value) => drop(values.insert(name, value)),
                Err(why) => self.wrong_at(entry.span().start, member, format!("{name}: {why}")),
            }
        }
        Some(values)
    }

    /// Records that a member is wrong: at its line, or at the block's line if the block doesn't have it.
    pub fn wrong(&mut self, member: &str, why: impl Display) {
        self.wrong_at(self.start_of(member, None), member, why);
    }

    /// Records that the block as a whole is wrong, and that its members are not read.
    pub fn refuse_unread(&mut self, why: impl Display) {
        self.refuse(why);
        self.is_unread = true;
    }

    pub(super) fn refuse(&mut self, why: impl Display) {
        let why = format!("{}: {why}", self.label());
        self.faults.push(Mistake::at(self.text, self.start, why));
    }

    fn wrong_at(&mut self, at: usize, member: &str, why: impl Display) {
        let why = format!("{}: {member}: {why}", self.label());
        self.faults.push(Mistake::at(self.text, at, why));
    }

    fn label(&self) -> String {
        match (self.kind, self.name.as_str()) {
            (kind, "") => kind.to_owned(),
            (DATASET, name) => name.to_owned(),
            (kind, name) => format!("{kind} {name}"),
        }
    }

    fn value<T: DeserializeOwned>(&mut self, member: &'static str) -> Option<T> {
        self.known.push(member);
        let value = self.members.get(member)?;
        match T::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => Some(value),
            Err(error) => {
                let at = error.span().unwrap_or_else(|| value.span()).start;
                let why = format!("{}.{member}: {}", self.kind, error.message());
                self.shape_faults.push(Mistake::at(self.text, at, why));
                None
            }
        }
    }

    /// Returns the position of an entry of a member, else that of the member's value, else that of the block.
    fn start_of(&self, member: &str, entry: Option<&str>) -> usize {
        let Some(value) = self.members.get(member) else { return self.start };
        let mut entries = value.as_ref().as_array().into_iter().flatten();
        let found = entries.find(|found| entry.is_some() && found.as_ref().as_str() == entry);
        found.unwrap_or(value).span().start
    }
}

fn unknown_members(text: &str, table: &DeTable<'_>, known: &[&'static str]) -> Vec<Mistake> {
    let all = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let unknown = table.keys().filter(|key| known.iter().all(|name| name != key.as_ref()));
    let mistake = |key: &Spanned<DeString<'_>>| {
        let near = hint(key.as_ref(), known.iter().copied());
        let why = format!("unknown field `{}`, expected one of {all}{near}", key.as_ref());
        Mistake::at(text, key.span().start, why)
    };
    unknown.map(mistake).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::assert_lines;

    /// Returns the faults of a file whose kinds of blocks are `dataset` and `amqp`, and whose `size` is at most 9.
    fn faults(text: &str) -> String {
        let mut file = match OperatorFile::parse(text) {
            Ok(file) => file,
            Err(mistakes) => return mistakes.to_string(),
        };
        file.refuse_other_kinds(&[DATASET, "amqp"]);
        let short = |text: &str| if text.len() < 5 { Ok(text.to_owned()) } else { Err("too long") };
        let mut names = Names::default();
        for kind in [DATASET, "amqp"] {
            file.each_block(kind, &mut names, |block| {
                block.required("table", short);
                block.number("size", &(1..=9));
                block.flag("track", false);
                block.is_second("time", ["time", "text"]);
                block.list("columns", short);
                block.table("mask", short);
            });
        }
        Mistakes(file.into_mistakes()).to_string()
    }

    #[test]
    fn every_fault_is_reported_with_its_line() {
        let text = "[[dataset]]
name = \"Orders\"
table = \"orders\"
size = 10
time = \"date\"
columns = [
  \"id\",
  \"number\",
]
[dataset.mask]
email = \"sha256\"
[[dataset]]
colums = []
table = 1
size = \"1GB\"
track = \"yes\"
[[dataset]]
name = \"a\"
columns = []
mask = { a = 1 }
[[amqp]]
name = \"a\"
[[amqp]]
name = \"b\"
table = \"b\"
[[amqp]]
name = \"b\"
[[datasets]]
";
        let expected = [
            "line 28: unknown field `datasets`, expected one of `dataset`, `amqp`; is it `dataset`?",
            "line 2: Orders: name: 1 to 63 characters",
            "line 3: Orders: table: too long",
            "line 4: Orders: size: a number from 1 to 9 is expected",
            "line 5: Orders: time: `date` is neither time nor text",
            "line 8: Orders: columns: too long",
            "line 11: Orders: mask: email: too long",
            "line 14: dataset.table: invalid type: integer `1`, expected a string",
            "line 15: dataset.size: invalid type: string \"1GB\", expected u64",
            "line 16: dataset.track: invalid type: string \"yes\", expected a boolean",
            "line 13: unknown field `colums`, expected one of `name`, `table`, `size`, `track`, `time`, `columns`, `mask`; \
             is it `columns`?",
            "line 12: dataset: missing field `name`",
            "line 20: dataset.mask: invalid type: integer `1`, expected a string",
            "line 17: dataset: missing field `table`",
            "line 19: a: columns: an empty list: leave it out",
            "line 21: amqp a: there is a dataset of this name already",
            "line 26: amqp b: there is an amqp of this name already",
        ];
        assert_lines(&faults(text), &expected);
        assert_eq!(faults("\n[amqp]\nname = \"a\""), "line 2: [amqp] is one of several: write [[amqp]]");
        assert!(faults("\nx = [").starts_with("line 2: "));
    }
}
