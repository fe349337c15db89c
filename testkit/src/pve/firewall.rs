//! Firewall options and positional rules, of the cluster and of each guest.
//!
//! Minimal: what a client writes can be read back at the right position. No packet is filtered.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha1::{Digest as _, Sha1};

use super::dispatch::Call;
use super::formats::split_list;
use super::wire::{ApiError, Method, Params, Reply};

type Rule = BTreeMap<String, String>;

/// Parameters that steer a request and are no part of a rule.
const STEERING: &[&str] = &["node", "vmid", "pos", "moveto", "delete", "digest"];
/// Keys that the API shows as numbers.
const NUMERIC: &[&str] = &["enable", "dhcp", "macfilter", "ndp", "ipfilter", "radv", "ebtables"];

#[derive(Debug, Default, Clone)]
pub(crate) struct Firewall {
    options: BTreeMap<String, String>,
    rules: Vec<Rule>,
}

/// `…/firewall/options` and `…/firewall/rules`; `None` for what is not simulated.
pub(crate) fn handle(
    firewall: &mut Firewall,
    call: &Call<'_>,
    tail: &str,
) -> Option<Result<Reply, ApiError>> {
    Some(match (call.method, tail) {
        (Method::Get, "/options") => Ok(Reply::Data(firewall.show_options())),
        (Method::Put, "/options") => firewall.set_options(&call.params),
        (Method::Get, "/rules") => Ok(Reply::Data(firewall.show_rules())),
        (Method::Post, "/rules") => firewall.insert(&call.params),
        (Method::Get, "/rules/{pos}") => {
            firewall.position(&call.params).map(|pos| Reply::Data(firewall.show(pos)))
        }
        (Method::Put, "/rules/{pos}") => firewall.update(&call.params),
        (Method::Delete, "/rules/{pos}") => firewall.remove(&call.params),
        _ => return None,
    })
}

impl Firewall {
    fn digest(&self) -> String {
        let text = format!("{:?}{:?}", self.options, self.rules);
        Sha1::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn check_digest(&self, params: &Params) -> Result<(), ApiError> {
        match params.get("digest") {
            Some(digest) if digest != self.digest() => Err(ApiError::fail(
                "detected modified configuration - file changed by other user? Try again.",
            )),
            _ => Ok(()),
        }
    }

    fn show_options(&self) -> Value {
        let mut data = shown(&self.options);
        data.insert("digest".to_owned(), json!(self.digest()));
        Value::Object(data)
    }

    fn set_options(&mut self, params: &Params) -> Result<Reply, ApiError> {
        self.check_digest(params)?;
        for key in split_list(params.text("delete")) {
            self.options.remove(key);
        }
        self.options.extend(content(params));
        Reply::none()
    }

    fn show_rules(&self) -> Value {
        (0..self.rules.len()).map(|pos| self.show(pos)).collect()
    }

    fn show(&self, pos: usize) -> Value {
        let mut data = shown(&self.rules[pos]);
        data.insert("pos".to_owned(), json!(pos));
        data.insert("digest".to_owned(), json!(self.digest()));
        Value::Object(data)
    }

    fn position(&self, params: &Params) -> Result<usize, ApiError> {
        params
            .number("pos")
            .and_then(|pos| usize::try_from(pos).ok())
            .filter(|pos| *pos < self.rules.len())
            .ok_or_else(|| ApiError::param("pos", format!("no rule at position {}", params.text("pos"))))
    }

    /// A new rule goes to the front unless a position is given; the others shift.
    fn insert(&mut self, params: &Params) -> Result<Reply, ApiError> {
        self.check_digest(params)?;
        let pos = params.number("pos").and_then(|pos| usize::try_from(pos).ok()).unwrap_or(0);
        self.rules.insert(pos.min(self.rules.len()), content(params).collect());
        Reply::none()
    }

    fn update(&mut self, params: &Params) -> Result<Reply, ApiError> {
        self.check_digest(params)?;
        let pos = self.position(params)?;
        if let Some(to) = params.number("moveto").and_then(|to| usize::try_from(to).ok()) {
            let rule = self.rules.remove(pos);
            // The target counts positions before the move.
            let to = if to > pos { to - 1 } else { to };
            self.rules.insert(to.min(self.rules.len()), rule);
            return Reply::none();
        }
        for key in split_list(params.text("delete")) {
            self.rules[pos].remove(key);
        }
        self.rules[pos].extend(content(params));
        Reply::none()
    }

    fn remove(&mut self, params: &Params) -> Result<Reply, ApiError> {
        self.check_digest(params)?;
        let pos = self.position(params)?;
        self.rules.remove(pos);
        Reply::none()
    }
}

fn content(params: &Params) -> impl Iterator<Item = (String, String)> {
    params
        .0
        .iter()
        .filter(|(key, _)| !STEERING.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
}

fn shown(values: &BTreeMap<String, String>) -> Map<String, Value> {
    values
        .iter()
        .map(|(key, value)| {
            let number = NUMERIC.contains(&key.as_str()).then(|| value.parse::<i64>().ok()).flatten();
            (key.clone(), number.map_or_else(|| json!(value), |number| json!(number)))
        })
        .collect()
}
