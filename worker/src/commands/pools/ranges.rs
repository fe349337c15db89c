//! From what an operator writes to networks and ranges of addresses. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::{
    adapters::db::pool_admin::{NewPool, POOL_SIZE_MAX},
    cli::PoolAdd,
};

/// Of an IPv6 network these first addresses are left to routers and services,
const V6_SKIPPED: u128 = 16;
/// and so many are handed out unless a range is given: more than any cluster has pods.
const V6_COUNT: u128 = 1 << 32;

/// A range FIRST-LAST, or one address.
pub(super) fn range(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let address = |text: &str| -> Result<IpAddr, String> {
        text.trim().parse().map_err(|_| format!("`{text}` is no address"))
    };
    let (first, last) = (address(first)?, address(last)?);
    if first.is_ipv4() != last.is_ipv4() {
        return Err(format!("`{text}` mixes IPv4 and IPv6"));
    }
    if first > last {
        return Err(format!("`{text}` must go up"));
    }
    Ok((first, last))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// The pool that the arguments mean.
pub(super) fn new_pool(args: &PoolAdd) -> Result<NewPool, String> {
    let network: IpNetwork = args
        .cidr
        .parse()
        .map_err(|_| format!("`{}` is no network such as 10.20.0.0/24 or 2001:db8:1::/64", args.cidr))?;
    let (base, prefix) = (network.network(), network.prefix());
    if network.ip() != base {
        return Err(format!("`{}` has host bits; the network is {base}/{prefix}", args.cidr));
    }
    let (bits, smallest) = if base.is_ipv4() { (32, 30) } else { (128, 126) };
    if prefix > smallest {
        return Err(format!("`{}` is too small: /{smallest} is the least", args.cidr));
    }
    if prefix == 0 {
        return Err(format!("`{}` is everything there is", args.cidr));
    }
    let first_of_network = number(base);
    let last_of_network = first_of_network + ((1_u128 << (bits - u32::from(prefix))) - 1);
    let within = |ip: IpAddr| -> Result<u128, String> {
        let (inside, n) = (ip.is_ipv4() == base.is_ipv4(), number(ip));
        if inside && (first_of_network..=last_of_network).contains(&n) {
            Ok(n)
        } else {
            Err(format!("{ip} is not in {}", args.cidr))
        }
    };
    let gateway = match args.gateway.as_deref() {
        None => None,
        Some(text) => {
            let ip: IpAddr = text.trim().parse().map_err(|_| format!("`{text}` is no address"))?;
            within(ip)?;
            Some(ip)
        }
    };
    // IPv4 has a broadcast address; IPv6's first one belongs to routers.
    let hosts = match base {
        IpAddr::V4(_) => (first_of_network + 1, last_of_network - 1),
        IpAddr::V6(_) => (first_of_network + 1, last_of_network),
    };
    let (first, last) = match &args.range {
        None if base.is_ipv4() => hosts,
        None => {
            let first = (first_of_network + V6_SKIPPED).min(hosts.1);
            (first, hosts.1.min(first + V6_COUNT - 1))
        }
        Some(text) => {
            let (first, last) = range(text)?;
            let (first, last) = (within(first)?, within(last)?);
            if first < hosts.0 || last > hosts.1 {
                return Err(format!("--range {text} must leave out network and broadcast address"));
            }
            (first, last)
        }
    };
    let count = last - first + 1;
    if base.is_ipv4() && count > POOL_SIZE_MAX.into() {
        return Err(format!(
            "{count} addresses are too many for one IPv4 pool (at most {POOL_SIZE_MAX}): use --range"
        ));
    }
    if count > V6_COUNT {
        return Err(format!(
            "{count} addresses are too many for one pool (at most {V6_COUNT}): use a shorter --range"
        ));
    }
    let mut exclusions: Vec<(IpAddr, IpAddr)> = Vec::new();
    for text in &args.exclude {
        let (first, last) = range(text)?;
        within(first)?;
        within(last)?;
        if let Some((other, _)) = exclusions.iter().find(|(a, b)| first <= *b && last >= *a) {
            return Err(format!("--exclude {text} overlaps the range that begins with {other}"));
        }
        exclusions.push((first, last));
    }
    Ok(NewPool {
        cluster: args.cluster.clone(),
        cidr: format!("{base}/{prefix}"),
        gateway: gateway.map(|ip| ip.to_string()),
        bridge: args.bridge.clone(),
        vlan: args.vlan,
        first: address(first, base).to_string(),
        last: address(last, base).to_string(),
        rows: base.is_ipv4(),
        exclusions: exclusions.iter().map(|(first, last)| (first.to_string(), last.to_string())).collect(),
        rest_s: args.rest_hours * 3600,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cidr: &str, gateway: Option<&str>, range: Option<&str>, exclude: &[&str]) -> PoolAdd {
        PoolAdd {
            cidr: cidr.to_owned(),
            gateway: gateway.map(str::to_owned),
            range: range.map(str::to_owned),
            exclude: exclude.iter().map(|text| (*text).to_owned()).collect(),
            rest_hours: 24,
            bridge: None,
            vlan: None,
            cluster: "default".to_owned(),
            json: false,
        }
    }

    #[test]
    fn a_network_hands_out_its_hosts_or_a_range_of_them() {
        let ends = |args: &PoolAdd| {
            let pool = new_pool(args).unwrap();
            (pool.first, pool.last, pool.rows)
        };
        let v4 = |first: &str, last: &str| (first.to_owned(), last.to_owned(), true);
        let v6 = |first: &str, last: &str| (first.to_owned(), last.to_owned(), false);
        assert_eq!(ends(&args("10.20.0.0/24", Some("10.20.0.1"), None, &[])), v4("10.20.0.1", "10.20.0.254"));
        let some = args("10.20.0.0/24", None, Some("10.20.0.50-10.20.0.59"), &[]);
        assert_eq!(ends(&some), v4("10.20.0.50", "10.20.0.59"));
        assert_eq!(ends(&args("fd00:1::/64", None, None, &[])), v6("fd00:1::10", "fd00:1::1:0:f"));
        let some = args("fd00:1::/64", Some("fd00:1::1"), Some("fd00:1::2-fd00:1::9"), &["fd00:1::4"]);
        assert_eq!(ends(&some), v6("fd00:1::2", "fd00:1::9"));
        let excluded = new_pool(&some).unwrap().exclusions;
        assert_eq!(excluded, [("fd00:1::4".to_owned(), "fd00:1::4".to_owned())]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let bad = [
            args("10.20.0.5/24", None, None, &[]),
            args("fd00::5/64", None, None, &[]),
            args("0.0.0.0/0", None, None, &[]),
            args("::/0", None, None, &[]),
            args("10.0.0.0/8", None, None, &[]),
            args("10.20.0.0/31", None, None, &[]),
            args("fd00::/127", None, None, &[]),
            args("fd00::/64", None, Some("fd00::1-fd00::ffff:ffff:ffff"), &[]),
            args("fd00::/64", Some("10.0.0.1"), None, &[]),
            args("10.20.0.0/24", Some("10.21.0.1"), None, &[]),
            args("10.20.0.0/24", None, Some("10.20.0.9-10.20.0.1"), &[]),
            args("10.20.0.0/24", None, Some("10.20.0.0-10.20.0.9"), &[]),
            args("10.20.0.0/24", None, Some("10.20.0.9-fd00::1"), &[]),
            args("10.20.0.0/24", None, None, &["10.21.0.9"]),
            args("10.20.0.0/24", None, None, &["10.20.0.9-10.20.0.20", "10.20.0.20"]),
        ];
        for args in bad {
            assert!(new_pool(&args).is_err(), "{args:?}");
        }
    }
}
