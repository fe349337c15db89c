//! Layers the sources: default < file < secret file < environment < flag.
//!
//! Answers for each setting its text and where that came from; typed values are
//! made in the parent module. Pure.

use std::collections::BTreeMap;

use super::{
    Problem,
    settings::{SETTINGS, Setting, nearest_key},
    sources::Sources,
};

/// A setting's value as text, and its origin for the operator.
#[derive(Clone)]
pub struct Resolved {
    /// The text.
    pub text: String,
    /// `default`, `flag`, the variable's name or the file's.
    pub origin: String,
}

impl std::fmt::Debug for Resolved {
    /// Redacted: the text may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolved").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// All settings that have a value.
#[derive(Debug, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, Resolved>,
    /// What was wrong so far.
    pub problems: Vec<Problem>,
}

impl Layers {
    /// Lays the sources over each other.
    #[must_use]
    pub fn of(sources: &Sources) -> Self {
        let mut layers = Self { problems: sources.problems.clone(), ..Self::default() };
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                layers.set(setting.key, default, "default");
            }
        }
        layers.read_toml(sources);
        for (key, origin, text) in &sources.secret_files {
            layers.set(key, text, origin);
        }
        for setting in SETTINGS {
            // mPanel's own name last: it wins.
            for variable in [Some(setting.fleet_env()), setting.env.map(str::to_owned)].into_iter().flatten()
            {
                match sources.env.get(&variable) {
                    // An empty variable is an unset one, save where empty means something.
                    Some(text) if !text.is_empty() || setting.key == "cloudpods.pool" => {
                        layers.set(setting.key, text, &variable);
                    }
                    _ => {}
                }
            }
        }
        for (key, text) in &sources.flags {
            layers.set(key, text, "flag");
        }
        layers
    }

    fn set(&mut self, key: &'static str, text: &str, origin: &str) {
        self.values.insert(key, Resolved { text: text.to_owned(), origin: origin.to_owned() });
    }

    fn read_toml(&mut self, sources: &Sources) {
        let Some((path, text)) = &sources.toml else { return };
        let origin = path.display().to_string();
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                // Only the position and the message: the text may hold secrets.
                let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
                self.problems.push(Problem::new(&origin, format!("line {line}: {}", error.message())));
                return;
            }
        };
        for (section, content) in &table {
            let Some(content) = content.as_table() else {
                self.unknown(&origin, section);
                continue;
            };
            for (name, value) in content {
                let key = format!("{section}.{name}");
                let Some(setting) = Setting::find(&key) else {
                    self.unknown(&origin, &key);
                    continue;
                };
                match plain(value) {
                    Some(text) => self.set(setting.key, &text, &origin),
                    None => self.problems.push(Problem::new(
                        format!("{key} in {origin}"),
                        format!(
                            "must be text, a number, true, false or a list of texts, such as {:?}",
                            setting.example
                        ),
                    )),
                }
            }
        }
    }

    fn unknown(&mut self, origin: &str, key: &str) {
        let hint = nearest_key(key).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        self.problems.push(Problem::new(format!("{key} in {origin}"), format!("is not a setting{hint}")));
    }

    /// The value of a setting.
    #[must_use]
    pub fn get(&self, key: &'static str) -> Option<&Resolved> {
        debug_assert!(Setting::find(key).is_some(), "setting {key} is not in the list");
        self.values.get(key)
    }

    /// The text of a setting.
    #[must_use]
    pub fn text(&self, key: &'static str) -> Option<&str> {
        self.get(key).map(|resolved| resolved.text.as_str())
    }

    /// The parsed value of a setting; a value that does not parse is a problem.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let resolved = self.values.get(key)?.clone();
        match parse(&resolved.text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.problem(key, problem);
                None
            }
        }
    }

    /// A whole number within bounds.
    pub fn number(&mut self, key: &'static str, min: u64, max: u64) -> Option<u64> {
        self.parsed(key, |text| match text.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {min} to {max}, is `{text}`")),
        })
    }

    /// A yes or no.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.parsed(key, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            other => Err(format!("must be true or false, is `{other}`")),
        })
    }

    /// Notes a problem of a setting, under the name by which it was set.
    pub fn problem(&mut self, key: &'static str, problem: impl Into<String>) {
        let Some(setting) = Setting::find(key) else { return };
        let what = match self.values.get(key).map(|resolved| resolved.origin.as_str()) {
            None | Some("default") => setting.variable(),
            Some("flag") => format!("flag for {key}"),
            Some(origin) if origin.contains('/') => format!("{key} in {origin}"),
            Some(origin) => origin.to_owned(),
        };
        let mut problem: String = problem.into();
        problem.push_str("; for example ");
        problem.push_str(&setting.variable());
        problem.push('=');
        problem.push_str(setting.example);
        self.problems.push(Problem { what, problem });
    }

    /// Every setting with value (secrets as `***`) and origin, for `check-config`.
    #[must_use]
    pub fn shown(&self) -> Vec<(&'static Setting, String, String)> {
        SETTINGS
            .iter()
            .map(|setting| match self.values.get(setting.key) {
                None => (setting, String::new(), "not set".to_owned()),
                Some(resolved) if setting.secret => {
                    let class = match resolved.text.len() {
                        0 => "empty",
                        1..=7 => "short",
                        8..=31 => "medium",
                        _ => "long",
                    };
                    (setting, format!("*** ({class})"), resolved.origin.clone())
                }
                Some(resolved) => (setting, resolved.text.clone(), resolved.origin.clone()),
            })
            .collect()
    }
}

/// A TOML value as one text; lists become comma lists.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Array(items) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            Some(texts?.join(","))
        }
        _ => None,
    }
}
