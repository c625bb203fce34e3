//! Decides whether events may be posted to an IP address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns why no event may be posted to an address. `None`: it may. `allows_private` permits addresses of this machine
/// and of its private networks.
pub(super) fn refusal(address: IpAddr, allows_private: bool) -> Option<&'static str> {
    match kind(address) {
        AddressKind::Public => None,
        AddressKind::Private if allows_private => None,
        AddressKind::Private => Some("is private: `allow_private = true` allows it"),
        AddressKind::Refused => Some("is a cloud's metadata, link-local or of no host: no receiver has it"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressKind {
    /// A host of the internet.
    Public,
    /// This machine, or one of its own network.
    Private,
    /// An address that no receiver has: link-local, a cloud's metadata service, which has credentials, or an address of
    /// no host.
    Refused,
}

/// The kind by the registries of special-purpose addresses (RFC 6890 and its updates).
fn kind(address: IpAddr) -> AddressKind {
    match address {
        IpAddr::V4(v4) => kind_of_v4(v4),
        IpAddr::V6(v6) => kind_of_v6(v6),
    }
}

fn kind_of_v4(v4: Ipv4Addr) -> AddressKind {
    let [a, b, c, d] = v4.octets();
    match (a, b, c) {
        // The metadata services of Azure and Alibaba, which are not link-local.
        (168, 63, 129) if d == 16 => AddressKind::Refused,
        (100, 100, 100) if d == 200 => AddressKind::Refused,
        (10, ..) | (127, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => AddressKind::Private,
        // This network, link-local, protocol assignments, documentation, 6to4 relays, benchmarks, multicast and
        // reserved addresses.
        (0, ..)
        | (169, 254, _)
        | (192, 0, 0 | 2)
        | (192, 88, 99)
        | (198, 18..=19, _)
        | (198, 51, 100)
        | (203, 0, 113)
        | (224.., ..) => AddressKind::Refused,
        _ => AddressKind::Public,
    }
}

fn kind_of_v6(v6: Ipv6Addr) -> AddressKind {
    let v4_in = |high: u16, low: u16| kind_of_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressKind::Private,
        // An IPv4 address, mapped, behind NAT64 or in 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4_in(high, low)
        }
        // The metadata services of Amazon and Google.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => AddressKind::Refused,
        [0xfc00..=0xfdff, ..] => AddressKind::Private,
        // Teredo, ORCHID and documentation are inside the public range.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => AddressKind::Refused,
        [0x2000..=0x3fff, ..] => AddressKind::Public,
        _ => AddressKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_kind() {
        let kinds = [
            (
                AddressKind::Public,
                "1.1.1.1 172.32.0.1 100.128.0.1 192.1.0.1 223.255.255.255 2606:4700::1111 64:ff9b::1.1.1.1 ::ffff:8.8.8.8",
            ),
            (
                AddressKind::Private,
                "127.0.0.1 127.9.9.9 10.0.0.1 172.31.255.255 192.168.1.1 100.64.0.1 ::1 fd12::1 ::ffff:10.0.0.1 64:ff9b::7f00:1
                 2002:a00:1::",
            ),
            (
                AddressKind::Refused,
                "0.0.0.0 169.254.169.254 168.63.129.16 100.100.100.200 192.0.2.1 198.18.0.1 224.0.0.1 255.255.255.255 :: fe80::1
                 fec0::1 ff02::1 fd00:ec2::254 fd20:ce::254 2001:db8::1 2001::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe
                 2002:a9fe:a9fe:: ::127.0.0.1 100::1",
            ),
        ];
        for (expected, addresses) in kinds {
            for address in addresses.split_whitespace() {
                assert_eq!(kind(address.parse().unwrap()), expected, "{address}");
            }
        }
    }
}
