//! What the blocks of receivers have in common: which events they hear of.

use toml::Spanned;

use crate::dataset::fault::UnknownDataset;
use crate::event;
use crate::job::{ConsumerId, Status};

/// A list of a block, with the places of its entries.
pub(super) type List = Spanned<Vec<Spanned<String>>>;

/// What is wrong, each with its place in the text.
pub(super) type Mistakes = Vec<(usize, String)>;

/// A mistake of a block: where, of which member, and why.
pub(super) type Wrong<'a> = &'a mut dyn FnMut(usize, &str, &str);

/// What blocks of receivers are held against.
pub(super) struct Known<'a> {
    /// Looks a dataset up by its name.
    pub dataset: &'a dyn Fn(&str) -> Result<(), UnknownDataset>,
    /// Whether a variable of the environment is one of the service's own.
    pub is_setting: &'a dyn Fn(&str) -> bool,
}

/// Refuses what can't be the variable that has a secret. `is_no` is what somebody may have written in its place.
pub(super) fn check_variable(member: &str, name: &Spanned<String>, is_no: &str, known: &Known<'_>, wrong: Wrong<'_>) {
    let at = name.span().start;
    if !is_variable(name.as_ref()) {
        wrong(at, member, &format!("the name of a variable is expected, not {is_no}"));
    } else if (known.is_setting)(name.as_ref()) {
        let why = format!("{} is a setting of the service: a variable of its own is expected", name.as_ref());
        wrong(at, member, &why);
    }
}

/// Whether a text can be the name of a variable of the environment.
fn is_variable(text: &str) -> bool {
    let is_begun = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    is_begun && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The ends that a block names; all where it names none.
pub(super) fn events(list: Option<&List>, wrong: Wrong<'_>) -> Vec<Status> {
    let ends = || Status::ALL.iter().copied().filter(|status| status.is_terminal());
    let Some(list) = list else { return ends().collect() };
    refuse_empty("events", list, wrong);
    let mut events = Vec::new();
    for event in list.as_ref() {
        match event::named_end(event.as_ref()) {
            Some(end) => events.push(end),
            None => {
                let names: Vec<_> = ends().map(event::event_name).collect();
                let why = format!("`{}` is none of {}", event.as_ref(), names.join(", "));
                wrong(event.span().start, "events", &why);
            }
        }
    }
    events
}

/// The datasets that a block names; `None`: all.
pub(super) fn datasets(list: Option<List>, known: &Known<'_>, wrong: Wrong<'_>) -> Option<Vec<String>> {
    let list = list?;
    refuse_empty("datasets", &list, wrong);
    for name in list.as_ref() {
        if let Err(unknown) = (known.dataset)(name.as_ref()) {
            wrong(name.span().start, "datasets", &unknown.to_string());
        }
    }
    Some(list.into_inner().into_iter().map(Spanned::into_inner).collect())
}

/// The consumers that a block names; `None`: all, and exports without one.
pub(super) fn consumers(list: Option<&List>, wrong: Wrong<'_>) -> Option<Vec<ConsumerId>> {
    let list = list?;
    refuse_empty("consumers", list, wrong);
    let mut consumers = Vec::new();
    for id in list.as_ref() {
        match id.as_ref().parse::<ConsumerId>() {
            Ok(consumer) => consumers.push(consumer),
            Err(why) => wrong(id.span().start, "consumers", &why.to_string()),
        }
    }
    Some(consumers)
}

fn refuse_empty(member: &str, list: &List, wrong: Wrong<'_>) {
    if list.as_ref().is_empty() {
        wrong(list.span().start, member, "an empty list: leave it out");
    }
}
