//! Generates the users of the demo table. Each is determined by its number, and is the same on every machine.

use chrono::{DateTime, TimeDelta, Utc};
use fake::faker::name::raw::Name;
use fake::locales::{DE_DE, EN, FR_FR, IT_IT, JA_JP, NL_NL, PT_BR, TR_TR, ZH_CN};
use fake::rand::SeedableRng;
use fake::rand::rngs::StdRng;
use fake::{Fake, RngExt};

/// Every 53rd user is soft-deleted: 1.9 %, so that 98,113 of 100,000 are live. The choice isn't random, so that a table
/// of seven or more users has a deleted one.
pub const DELETED_EVERY: u64 = 53;

/// The percentage of live users whose `updated_at` is later than their `created_at`.
pub const CHANGED_PERCENT: u32 = 40;

/// The users were created and changed within this number of days before the seeding.
pub const SPAN_DAYS: i64 = 30;

/// The seed is fixed, so that user 17 has the same name and address on every machine. An upgrade of `fake` may change
/// all of them, because its lists and its generator are not stable across versions.
const SEED: u64 = 0x6364_635f_6578_706f;

const SPAN_MICROS: i64 = SPAN_DAYS * 24 * 60 * 60 * 1_000_000;

pub(super) struct Person {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) is_deleted: bool,
}

/// Returns the person with this number, which is 1 or more. Each number seeds its own random generator, so a person
/// doesn't depend on the number or order of the others. The times are relative to `now`.
pub(super) fn person(number: u64, now: DateTime<Utc>) -> Person {
    let mut rng = StdRng::seed_from_u64(SEED ^ number);
    let name = name(&mut rng);
    let email = email(&name, number, &mut rng);

    let is_deleted = number % DELETED_EVERY == 7;
    let is_changed = is_deleted || rng.random_range(0..100) < CHANGED_PERCENT;
    let created_ago = rng.random_range(1..SPAN_MICROS);
    let updated_ago = if is_changed { rng.random_range(0..created_ago) } else { created_ago };
    Person {
        name,
        email,
        created_at: now - TimeDelta::microseconds(created_ago),
        updated_at: now - TimeDelta::microseconds(updated_ago),
        is_deleted,
    }
}

/// Returns a name: mostly English, and some in other scripts, which a file must preserve.
fn name(rng: &mut StdRng) -> String {
    match rng.random_range(0..20) {
        0 => Name(DE_DE).fake_with_rng(rng),
        1 => Name(FR_FR).fake_with_rng(rng),
        2 => Name(IT_IT).fake_with_rng(rng),
        3 => Name(JA_JP).fake_with_rng(rng),
        4 => Name(NL_NL).fake_with_rng(rng),
        5 => Name(PT_BR).fake_with_rng(rng),
        6 => Name(TR_TR).fake_with_rng(rng),
        7 => Name(ZH_CN).fake_with_rng(rng),
        _ => Name(EN).fake_with_rng(rng),
    }
}

/// Returns an address such as `ada.lovelace.17@example.org`. The number makes it unique. RFC 2606 reserves the domains,
/// so no real person has the address.
fn email(name: &str, number: u64, rng: &mut StdRng) -> String {
    let words: Vec<String> = name
        .split_whitespace()
        .map(|word| word.chars().filter(char::is_ascii_alphanumeric).collect())
        .filter(|word: &String| !word.is_empty())
        .collect();
    let who = if words.is_empty() { "user".to_owned() } else { words.join(".").to_ascii_lowercase() };
    let domain = ["com", "net", "org"][rng.random_range(0..3)];
    format!("{who}.{number}@example.{domain}")
}
