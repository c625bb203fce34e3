//! The people of the demo table, made up: each by a number, and the same on every machine.

use chrono::{DateTime, TimeDelta, Utc};
use fake::faker::name::raw::Name;
use fake::locales::{DE_DE, EN, FR_FR, IT_IT, JA_JP, NL_NL, PT_BR, TR_TR, ZH_CN};
use fake::rand::SeedableRng;
use fake::rand::rngs::StdRng;
use fake::{Fake, RngExt};

/// One user in so many is soft-deleted: 1.9 %, so that 98,113 of 100,000 are live. Not by chance: a small table has
/// deleted users too, from the seventh on.
pub const DELETED_EVERY: u64 = 53;

/// The share of live users, in percent, whose `updated_at` is later than their `created_at`.
pub const CHANGED_PERCENT: u32 = 40;

/// The users were created, and changed, within this many days before the seeding.
pub const SPAN_DAYS: i64 = 30;

/// Fixed, so that user 17 has the same name and address on every machine. (An upgrade of `fake` may change them all:
/// its lists grow, and its dice promise no sequence across versions.)
const SEED: u64 = 0x6364_635f_6578_706f;

const SPAN_MICROS: i64 = SPAN_DAYS * 24 * 60 * 60 * 1_000_000;

/// A row of the demo table.
pub(super) struct Person {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) is_deleted: bool,
}

/// The person of that number, counted from 1. Each number has dice of its own, so that its person stays the same
/// however many are made, and whichever is made first. The times lie relative to `now`.
pub(super) fn person(number: u64, now: DateTime<Utc>) -> Person {
    let mut dice = StdRng::seed_from_u64(SEED ^ number);
    let name = name(&mut dice);
    let email = email(&name, number, &mut dice);

    let is_deleted = number % DELETED_EVERY == 7;
    let is_changed = is_deleted || dice.random_range(0..100) < CHANGED_PERCENT;
    let created_ago = dice.random_range(1..SPAN_MICROS);
    let updated_ago = if is_changed { dice.random_range(0..created_ago) } else { created_ago };
    Person {
        name,
        email,
        created_at: now - TimeDelta::microseconds(created_ago),
        updated_at: now - TimeDelta::microseconds(updated_ago),
        is_deleted,
    }
}

/// Mostly English names, and some in scripts that a file has to carry unharmed.
fn name(dice: &mut StdRng) -> String {
    match dice.random_range(0..20) {
        0 => Name(DE_DE).fake_with_rng(dice),
        1 => Name(FR_FR).fake_with_rng(dice),
        2 => Name(IT_IT).fake_with_rng(dice),
        3 => Name(JA_JP).fake_with_rng(dice),
        4 => Name(NL_NL).fake_with_rng(dice),
        5 => Name(PT_BR).fake_with_rng(dice),
        6 => Name(TR_TR).fake_with_rng(dice),
        7 => Name(ZH_CN).fake_with_rng(dice),
        _ => Name(EN).fake_with_rng(dice),
    }
}

/// `ada.lovelace.17@example.org`: the number makes it unique, and RFC 2606 keeps those domains
/// free of real people.
fn email(name: &str, number: u64, dice: &mut StdRng) -> String {
    let words: Vec<String> = name
        .split_whitespace()
        .map(|word| word.chars().filter(char::is_ascii_alphanumeric).collect())
        .filter(|word: &String| !word.is_empty())
        .collect();
    let who = if words.is_empty() { "user".to_owned() } else { words.join(".").to_ascii_lowercase() };
    let domain = ["com", "net", "org"][dice.random_range(0..3)];
    format!("{who}.{number}@example.{domain}")
}
