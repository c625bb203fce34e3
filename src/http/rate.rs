//! Rate limits: a token bucket for each key, and for each address from which requests without a key come.
//!
//! A bucket of `600/min` holds 600 requests and refills by ten per second. Each process has its own buckets.
//!
//! The buckets are implemented by the `governor` crate. Its tower layer is not used, because it selects the bucket
//! before the lookup of the key. Here, a request with an unknown key is charged to its address.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::key::Prefix;

/// Maximum number of partly used buckets of addresses. Further addresses share one bucket.
const MAX_BUCKETS: usize = 50_000;
/// Number of charged requests after which full buckets are removed.
const REMOVE_FULL_EVERY: u32 = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Quota);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Rate, &'static str> {
        const NO_RATE: &str = "not a number of requests as 10/s, 600/min or 5000/h";
        let (number, unit) = text.split_once('/').ok_or(NO_RATE)?;
        // A limit above one million has no effect, and a clock could not measure such intervals.
        let number: NonZeroU32 = number.trim().parse().map_err(|_| NO_RATE)?;
        if number.get() > 1_000_000 {
            return Err(NO_RATE);
        }
        match unit.trim() {
            "s" | "sec" | "second" => Ok(Rate(Quota::per_second(number))),
            "min" | "minute" => Ok(Rate(Quota::per_minute(number))),
            "h" | "hour" => Ok(Rate(Quota::per_hour(number))),
            _ => Err(NO_RATE),
        }
    }
}

impl Rate {
    /// Returns the default limit with keys: 100 requests per second, with bursts of up to 6,000. Well-behaved clients
    /// stay far below it.
    pub fn default_with_keys() -> Rate {
        Rate(Quota::per_minute(NonZeroU32::new(6_000).expect("6,000 is not zero")))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum RateKey<'a> {
    Key(&'a Prefix),
    Address(IpAddr),
}

pub(crate) struct RateLimits {
    keys: Buckets<Prefix>,
    addresses: Buckets<IpAddr>,
}

struct Buckets<K: Hash + Eq + Clone> {
    limiter: DefaultKeyedRateLimiter<K>,
    charged: AtomicU32,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(Rate(quota): Rate) -> Buckets<K> {
        Buckets { limiter: RateLimiter::keyed(quota), charged: AtomicU32::new(0) }
    }

    fn charge(&self, key: &K) -> Result<(), Duration> {
        if self.charged.fetch_add(1, Ordering::Relaxed) % REMOVE_FULL_EVERY == REMOVE_FULL_EVERY - 1 {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(key).map_err(|until| until.wait_time_from(self.limiter.clock().now()))
    }
}

impl RateLimits {
    pub(crate) fn new(rate: Rate) -> RateLimits {
        RateLimits { keys: Buckets::new(rate), addresses: Buckets::new(rate) }
    }

    /// Takes one request from a bucket. If the bucket is empty, returns the time until the next request is allowed as
    /// `Err`.
    pub(crate) fn charge(&self, key: RateKey) -> Result<(), Duration> {
        match key {
            // An operator created each key, so the number of these buckets needs no limit.
            RateKey::Key(prefix) => self.keys.charge(prefix),
            RateKey::Address(_) if self.addresses.limiter.len() >= MAX_BUCKETS => {
                self.addresses.charge(&Ipv6Addr::UNSPECIFIED.into())
            }
            RateKey::Address(address) => self.addresses.charge(&client_network(address)),
        }
    }
}

/// Returns the client's network: the address itself, or its /64 prefix in IPv6, because a host can use all addresses of
/// its /64.
pub(crate) fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_parsed_strictly() {
        let minute = |number| Ok(Rate(Quota::per_minute(NonZeroU32::new(number).unwrap())));
        assert_eq!("600/min".parse(), minute(600));
        assert_eq!("600 / minute".parse(), minute(600));
        for good in ["1/s", "10/sec", "1000000/s", "5000/h", "1/hour"] {
            assert!(good.parse::<Rate>().is_ok(), "{good}");
        }
        for bad in ["", "600", "0/min", "-1/s", "1.5/s", "1000001/s", "4294967296/s", "1/day", "/min", "1/"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_key_and_each_network_has_its_own_bucket() {
        let limits = RateLimits::new("2/h".parse().unwrap());
        let charge = |address: &str| limits.charge(RateKey::Address(address.parse().unwrap())).is_ok();
        assert!(charge("10.0.0.1") && charge("::ffff:10.0.0.1") && !charge("10.0.0.1"));
        assert!(charge("10.0.0.2"));
        assert!(charge("2001:db8::1") && charge("2001:db8::2") && !charge("2001:db8::3"), "one /64");
        assert!(charge("2001:db8:0:1::1"));
        let prefix = Prefix::stored("10.0.0.1".to_owned());
        assert!(limits.charge(RateKey::Key(&prefix)).is_ok(), "a key has its own bucket");
        let wait = limits.charge(RateKey::Address("10.0.0.1".parse().unwrap())).unwrap_err();
        assert!((1_700..=1_800).contains(&wait.as_secs()), "{wait:?}");
    }

    #[test]
    fn number_of_buckets_is_limited() {
        let limits = RateLimits::new("2/h".parse().unwrap());
        for n in 0..MAX_BUCKETS as u32 + 5_000 {
            let _ = limits.charge(RateKey::Address(IpAddr::V4(n.into())));
        }
        assert!(limits.addresses.limiter.len() <= MAX_BUCKETS + 1);
    }
}
