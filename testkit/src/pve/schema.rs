//! The request validator, generated at start from the API extract in `data/`.
//!
//! Finds the method for a path and checks parameters against it. It must not know what any method does.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;

use super::param::ParamSpec;
use super::wire::{ApiError, Method, Params, RawParams, RawValue};

const EXTRACT: &str = include_str!("../../data/pve-api-extract.json");

#[derive(Deserialize)]
struct ExtractFile {
    endpoints: BTreeMap<String, BTreeMap<String, Value>>,
}

/// All methods of the extract.
#[derive(Debug)]
pub(crate) struct Schema {
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    template: String,
    segments: Vec<Segment>,
    methods: HashMap<Method, MethodSpec>,
}

#[derive(Debug)]
enum Segment {
    Literal(String),
    Capture(String),
    /// A volume id: takes the rest of the path, slashes included.
    Rest(String),
}

/// What the extract says about one method.
#[derive(Debug)]
pub(crate) struct MethodSpec {
    params: BTreeMap<String, ParamSpec>,
    /// Numbered families such as `net[n]`, by prefix.
    families: Vec<(String, ParamSpec)>,
    pub(crate) allow_token: bool,
    pub(crate) world: bool,
    pub(crate) check: Option<Value>,
}

/// A path that was found.
#[derive(Debug)]
pub(crate) struct Match<'a> {
    pub(crate) template: &'a str,
    pub(crate) spec: &'a MethodSpec,
    pub(crate) captures: BTreeMap<String, String>,
}

impl Schema {
    /// Builds the validator. The extract is part of this program, so a fault in it is a fault of the build.
    pub(crate) fn load() -> Self {
        let file: ExtractFile =
            serde_json::from_str(EXTRACT).expect("the embedded API extract is valid JSON");
        let endpoints = file
            .endpoints
            .into_iter()
            .map(|(template, methods)| Endpoint {
                segments: template.split('/').filter(|part| !part.is_empty()).map(Segment::parse).collect(),
                methods: methods
                    .iter()
                    .filter_map(|(name, spec)| Some((Method::parse(name)?, MethodSpec::parse(spec))))
                    .collect(),
                template,
            })
            .collect();
        Self { endpoints }
    }

    /// Finds the method for a decoded path; literal segments win over captures.
    pub(crate) fn find(&self, method: Method, path: &[String]) -> Option<Match<'_>> {
        let mut best: Option<(usize, &Endpoint, BTreeMap<String, String>)> = None;
        for endpoint in &self.endpoints {
            if let Some((literals, captures)) = endpoint.matches(path)
                && best.as_ref().is_none_or(|(most, ..)| literals > *most)
            {
                best = Some((literals, endpoint, captures));
            }
        }
        let (_, endpoint, captures) = best?;
        let spec = endpoint.methods.get(&method)?;
        Some(Match { template: &endpoint.template, spec, captures })
    }

    /// The parameters of one method, by the extract's own path template.
    pub(crate) fn spec(&self, method: Method, template: &str) -> Option<&MethodSpec> {
        self.endpoints.iter().find(|endpoint| endpoint.template == template)?.methods.get(&method)
    }
}

impl Segment {
    fn parse(text: &str) -> Self {
        match text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
            Some("volume") => Self::Rest("volume".to_owned()),
            Some(name) => Self::Capture(name.to_owned()),
            None => Self::Literal(text.to_owned()),
        }
    }
}

impl Endpoint {
    fn matches(&self, path: &[String]) -> Option<(usize, BTreeMap<String, String>)> {
        let mut captures = BTreeMap::new();
        let mut literals = 0;
        let mut rest = path;
        for segment in &self.segments {
            let (first, tail) = rest.split_first()?;
            rest = tail;
            match segment {
                Segment::Literal(text) if text == first => literals += 1,
                Segment::Literal(_) => return None,
                Segment::Capture(name) => {
                    captures.insert(name.clone(), first.clone());
                }
                Segment::Rest(name) => {
                    let mut all = vec![first.as_str()];
                    all.extend(tail.iter().map(String::as_str));
                    captures.insert(name.clone(), all.join("/"));
                    rest = &[];
                }
            }
        }
        rest.is_empty().then_some((literals, captures))
    }
}

impl MethodSpec {
    fn parse(spec: &Value) -> Self {
        let mut params = BTreeMap::new();
        let mut families = Vec::new();
        for (name, param) in spec["params"].as_object().into_iter().flatten() {
            match name.strip_suffix("[n]") {
                Some(prefix) => families.push((prefix.to_owned(), ParamSpec::parse(param))),
                None => {
                    params.insert(name.clone(), ParamSpec::parse(param));
                }
            }
        }
        let permissions = &spec["permissions"];
        Self {
            params,
            families,
            allow_token: spec["allowtoken"].as_i64() == Some(1),
            world: permissions["user"] == "world",
            check: permissions.get("check").cloned(),
        }
    }

    /// The rule for one key, families included.
    pub(crate) fn param(&self, key: &str) -> Option<&ParamSpec> {
        self.params.get(key).or_else(|| {
            self.families.iter().find_map(|(prefix, spec)| {
                let digits = key.strip_prefix(prefix.as_str())?;
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                let canonical = digits == "0" || !digits.starts_with('0');
                (plain && canonical && digits.parse::<u16>().is_ok_and(|n| n <= last_index(prefix)))
                    .then_some(spec)
            })
        })
    }

    /// Checks everything at once, so that the caller learns of every wrong parameter.
    pub(crate) fn validate(
        &self,
        captures: &BTreeMap<String, String>,
        mut raw: RawParams,
    ) -> Result<Params, ApiError> {
        let mut errors = BTreeMap::new();
        for (key, value) in captures {
            match raw.get(key) {
                Some(RawValue::One(other)) if other != value => {
                    errors.insert(key.clone(), "duplicate parameter (already defined in URI)".to_owned());
                }
                _ => {
                    raw.insert(key.clone(), RawValue::One(value.clone()));
                }
            }
        }
        let mut params = BTreeMap::new();
        for (key, value) in &raw {
            match self.param(key) {
                // A capture is always welcome, even where the extract forgot to list it.
                None if captures.contains_key(key) => {
                    if let RawValue::One(text) = value {
                        params.insert(key.clone(), text.clone());
                    }
                }
                None => {
                    errors.insert(
                        key.clone(),
                        "property is not defined in schema and the schema does not allow additional properties"
                            .to_owned(),
                    );
                }
                Some(spec) => match spec.accept(value) {
                    Ok(text) => {
                        params.insert(key.clone(), text);
                    }
                    Err(text) => {
                        errors.insert(key.clone(), text);
                    }
                },
            }
        }
        for (key, spec) in &self.params {
            if !spec.optional && !raw.contains_key(key) {
                errors.insert(key.clone(), "property is missing and it is not optional".to_owned());
            }
            if let Some(needed) = &spec.requires
                && raw.contains_key(key)
                && !raw.contains_key(needed)
            {
                errors.insert(needed.clone(), format!("missing property - '{key}' requires this property"));
            }
        }
        if errors.is_empty() { Ok(Params(params)) } else { Err(ApiError::params(errors)) }
    }
}

/// The highest number in a family of parameters.
fn last_index(prefix: &str) -> u16 {
    match prefix {
        "net" | "ipconfig" => 31,
        "scsi" => 30,
        "virtio" | "hostpci" => 15,
        "usb" => 13,
        "virtiofs" => 9,
        "numa" => 7,
        "sata" => 5,
        "ide" | "serial" => 3,
        "parallel" => 2,
        _ => 255,
    }
}

#[cfg(test)]
mod tests {
    use super::super::param::pattern;
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn every_pattern_of_the_extract_can_be_read() {
        let file: ExtractFile = serde_json::from_str(EXTRACT).unwrap();
        for spec in file.endpoints.values().flat_map(|methods| methods.values()) {
            for param in spec["params"].as_object().into_iter().flatten().map(|(_, param)| param) {
                if let Some(text) = param["pattern"].as_str() {
                    assert!(pattern(text).is_some(), "{text}");
                }
            }
        }
    }

    #[test]
    fn literals_win_and_a_volume_takes_the_rest() {
        let schema = Schema::load();
        let found = schema
            .find(Method::Delete, &path("/nodes/pve1/storage/local/content/local:backup/x.tar"))
            .unwrap();
        assert_eq!(found.captures["volume"], "local:backup/x.tar");
        assert!(schema.find(Method::Get, &path("/nodes/pve1/lxc/100/status/current")).is_some());
        assert!(schema.find(Method::Post, &path("/nodes/pve1/lxc/100/status/current")).is_none());
    }

    #[test]
    fn errors_name_every_wrong_parameter() {
        let schema = Schema::load();
        let found = schema.find(Method::Post, &path("/nodes/pve1/lxc")).unwrap();
        let mut raw = RawParams::new();
        super::super::wire::parse_form(
            "vmid=12&memory=x&cores=0&net0=bridge=vmbr0&bogus=1&unprivileged=maybe&unique=1&net01=name=a",
            &mut raw,
        );
        let errors = found.spec.validate(&found.captures, raw).unwrap_err().errors;
        let keys: Vec<_> = errors.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["bogus", "cores", "memory", "net0", "net01", "ostemplate", "restore", "unprivileged", "vmid"]
        );
        assert_eq!(errors["memory"], "type check ('integer') failed - got 'x'");
        assert_eq!(errors["vmid"], "value must have a minimum value of 100");
    }
}
