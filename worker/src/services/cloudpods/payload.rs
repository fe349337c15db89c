//! From a payload of the right types to a pod that makes sense, or the list of
//! fields that do not. Pure.
//!
//! These texts reach Proxmox and, through it, a container's start-up: the
//! allow-lists here are what keeps tenants' words from becoming commands.

use std::net::Ipv4Addr;

use mpanel_protocol::payload::{
    FieldProblem, PayloadError,
    cloudpods::{CreatePayload, PodKind},
};
use serde_json::Value;
use uuid::Uuid;

/// Lowest and highest id that Proxmox gives a guest.
const VMID: std::ops::RangeInclusive<i64> = 100..=999_999_999;
const CORES: std::ops::RangeInclusive<i64> = 1..=1024;
/// Proxmox's lower bound is 16 MiB; 4 TiB is more than any node has.
const MEMORY_MB: std::ops::RangeInclusive<i64> = 16..=4_194_304;
const SWAP_MB: std::ops::RangeInclusive<i64> = 0..=4_194_304;
const DISK_GB: std::ops::RangeInclusive<i64> = 1..=65_536;
/// What mPanel's pod row has by default.
const SWAP_MB_DEFAULT: u32 = 512;

/// A pod to be created; every value is in range and safe to hand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSpec {
    /// Whose it becomes.
    pub tenant_id: Uuid,
    /// Its VMID; binding when given.
    pub vmid: Option<u32>,
    /// Its host name.
    pub hostname: String,
    /// Its address.
    pub address: AddressWish,
    /// CPU cores.
    pub cores: u32,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Swap, MiB.
    pub swap_mb: u32,
    /// Disk, GiB.
    pub disk_gb: u32,
    /// Its region; `None` is the configured default.
    pub region: Option<String>,
    /// Who asked.
    pub requested_by: Option<String>,
    /// Its blueprint, by id or slug.
    pub blueprint: Option<String>,
    /// The plan it was sold as.
    pub plan_id: Option<String>,
    /// Container or machine, if the payload says.
    pub kind: Option<PodKind>,
}

/// Which address the pod is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressWish {
    /// This one.
    Static {
        /// The address.
        ip: Ipv4Addr,
        /// Its prefix length, if the payload gave one.
        prefix: Option<u8>,
    },
    /// Any: from a pool, else by DHCP.
    Auto,
}

/// Decodes and checks; reports every problem at once, by field.
///
/// # Errors
/// [`PayloadError`].
pub fn parse(data: &Value) -> Result<CreateSpec, PayloadError> {
    check(CreatePayload::try_from(data.clone())?)
}

fn check(payload: CreatePayload) -> Result<CreateSpec, PayloadError> {
    let mut problems = Vec::new();
    let mut problem = |field: &str, text: String| {
        problems.push(FieldProblem { field: field.to_owned(), problem: text });
    };
    let mut ranged =
        |field: &str, value: i64, range: std::ops::RangeInclusive<i64>| match u32::try_from(value) {
            Ok(number) if range.contains(&value) => number,
            _ => {
                problem(field, format!("must be from {} to {}, is {value}", range.start(), range.end()));
                0
            }
        };
    let vmid = payload.vmid.map(|vmid| ranged("vmid", vmid, VMID));
    let cores = ranged("cores", payload.cores, CORES);
    let memory_mb = ranged("memoryMb", payload.memory_mb, MEMORY_MB);
    let swap_mb = payload.swap_mb.map_or(SWAP_MB_DEFAULT, |swap| ranged("swapMb", swap, SWAP_MB));
    let disk_gb = ranged("diskGb", payload.disk_gb, DISK_GB);
    if let Err(text) = hostname(&payload.hostname) {
        problem("hostname", text);
    }
    if let Some(region) = &payload.region {
        let fits = region.len() <= 64
            && region.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !fits {
            problem("region", "must be at most 64 letters, digits, `-`, `_`, `.`".to_owned());
        }
    }
    for (field, text) in [
        ("requestedBy", &payload.requested_by),
        ("planId", &payload.plan_id),
        ("blueprintId", &payload.blueprint_id),
    ] {
        if text.as_ref().is_some_and(|text| text.len() > 200 || text.chars().any(char::is_control)) {
            problem(field, "must be at most 200 bytes without control characters".to_owned());
        }
    }
    let address = match (payload.ip.as_deref(), payload.auto_ip) {
        (Some(text), _) => match static_address(text) {
            Ok(wish) => wish,
            Err(text) => {
                problem("ip", text);
                AddressWish::Auto
            }
        },
        (None, Some(false)) => {
            problem("ip", "is missing while autoIp is false".to_owned());
            AddressWish::Auto
        }
        (None, _) => AddressWish::Auto,
    };
    if !problems.is_empty() {
        return Err(PayloadError { problems });
    }
    Ok(CreateSpec {
        tenant_id: payload.tenant_id,
        vmid,
        hostname: payload.hostname,
        address,
        cores,
        memory_mb,
        swap_mb,
        disk_gb,
        region: payload.region,
        requested_by: payload.requested_by,
        blueprint: payload.blueprint_id,
        plan_id: payload.plan_id,
        kind: payload.kind,
    })
}

/// RFC 1123: labels of letters, digits and inner hyphens, at most 63 each and 253 in all;
/// the last one not all digits, since that reads as an address.
fn hostname(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err(format!("must be at most 253 characters, has {}", text.chars().count()));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if text.split('.').all(label) && !numeric {
        Ok(())
    } else {
        Err("must be a host name: labels of letters, digits and inner `-`, at most 63 each, joined by `.`, \
             the last not all digits"
            .to_owned())
    }
}

/// `10.0.0.5` or `10.0.0.5/24`.
fn static_address(text: &str) -> Result<AddressWish, String> {
    let wrong = || "must be an IPv4 address a host can have, with or without /prefix".to_owned();
    let (ip, prefix) = match text.split_once('/') {
        Some((ip, prefix)) => {
            let prefix =
                prefix.parse::<u8>().ok().filter(|prefix| (8..=32).contains(prefix)).ok_or_else(wrong)?;
            (ip, Some(prefix))
        }
        None => (text, None),
    };
    let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
    let no_host = ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_link_local()
        || ip.octets()[0] == 0
        || ip.octets()[0] >= 240;
    if no_host { Err(wrong()) } else { Ok(AddressWish::Static { ip, prefix }) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Value {
        json!({"tenantId": "5f0c1a52-6a43-4b7e-9a51-2b1f5d0c7e11", "vmid": 121, "hostname": "shop-acme",
            "autoIp": true, "cores": 2, "memoryMb": 2048, "swapMb": 512, "diskGb": 20,
            "region": "migra-us-east-1", "requestedBy": "api"})
    }

    #[test]
    fn mpanels_sample_is_fine() {
        let spec = parse(&sample()).unwrap();
        assert_eq!((spec.vmid, spec.cores, spec.address), (Some(121), 2, AddressWish::Auto));
    }

    #[test]
    fn every_absurd_value_is_refused_by_name() {
        let long = "a".repeat(300);
        let cases = [
            ("cores", json!(0)),
            ("cores", json!(-1)),
            ("cores", json!(1e15)),
            ("memoryMb", json!(-2048)),
            ("swapMb", json!(-1)),
            ("diskGb", json!(0)),
            ("vmid", json!(99)),
            ("vmid", json!(4_294_967_400_u64)),
            ("hostname", json!("a;rm -rf /")),
            ("hostname", json!("$(reboot)")),
            ("hostname", json!("-oProxyCommand=x")),
            ("hostname", json!("../..")),
            ("hostname", json!("a,ip=dhcp")),
            ("hostname", json!(long)),
            ("hostname", json!("ümlaut")),
            ("hostname", json!("10.0.0.5")),
            ("hostname", json!(7)),
            ("region", json!("a b;c")),
            ("ip", json!("127.0.0.1")),
            ("ip", json!("10.0.0.5,gw=10.0.0.1")),
            ("ip", json!("10.0.0.5/33")),
            ("ip", json!("::1")),
            ("requestedBy", json!("x".repeat(201))),
        ];
        for (field, value) in cases {
            let mut data = sample();
            data[field] = value.clone();
            let text = parse(&data).unwrap_err().to_string();
            assert!(text.contains(&format!(" {field} ")), "{field}={value}: {text}");
        }
    }

    #[test]
    fn several_problems_are_reported_together() {
        let mut data = sample();
        data["cores"] = json!(0);
        data["memoryMb"] = json!(-1);
        data["hostname"] = json!("a b");
        assert_eq!(parse(&data).unwrap_err().problems.len(), 3);
    }

    #[test]
    fn an_address_is_static_when_given_and_missing_only_when_nothing_else_was_said() {
        let mut data = sample();
        data["ip"] = json!("10.1.2.3/22");
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(parse(&data).unwrap().address, AddressWish::Static { ip, prefix: Some(22) });
        let mut data = sample();
        data["autoIp"] = json!(false);
        assert!(parse(&data).unwrap_err().to_string().contains(" ip is missing"));
        data["ip"] = json!("10.1.2.3");
        assert_eq!(parse(&data).unwrap().address, AddressWish::Static { ip, prefix: None });
    }
}
