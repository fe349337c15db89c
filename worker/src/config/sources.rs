//! Where settings come from. The only file that reads the process environment,
//! the configuration file and secret files; what it finds is plain data.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Problem,
    settings::{SETTINGS, Setting},
};

/// The file that is read when no other is named.
pub const DEFAULT_FILE: &str = "/etc/mpanel/fleet.toml";

/// Everything that may set something, read and not yet judged.
#[derive(Default)]
pub struct Sources {
    /// The file's name and text, if there is one.
    pub toml: Option<(PathBuf, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Secrets found in files: key of the setting, file, content.
    pub secret_files: Vec<(&'static str, String, String)>,
    /// Command-line flags: key of the setting to its value.
    pub flags: BTreeMap<&'static str, String>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

impl std::fmt::Debug for Sources {
    /// Redacted: the environment holds secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("flags", &self.flags.keys()).finish_non_exhaustive()
    }
}

impl Sources {
    /// Reads the process environment, the configuration file and the secret files.
    #[must_use]
    pub fn gather(config_file: Option<&Path>, flags: BTreeMap<&'static str, String>) -> Self {
        let mut sources = Self { flags, ..Self::default() };
        for (name, value) in std::env::vars_os() {
            // A variable that is no UTF-8 cannot be one of ours.
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                sources.env.insert(name, value);
            }
        }
        let file = config_file.unwrap_or_else(|| Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(file) {
            Ok(text) => sources.toml = Some((file.to_owned(), text)),
            // The default file is optional; one that was asked for is not.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && config_file.is_none() => {}
            Err(error) => sources
                .problems
                .push(Problem::new("--config", format!("cannot read {}: {error}", file.display()))),
        }
        sources.read_secret_files();
        sources
    }

    /// `<NAME>_FILE` and `$CREDENTIALS_DIRECTORY/<name>` for each secret; systemd's
    /// credentials are named in lower case (`redis_password`).
    fn read_secret_files(&mut self) {
        let credentials = self.env.get("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        for setting in SETTINGS.iter().filter(|setting| setting.secret) {
            for variable in setting.variables() {
                for name in [variable.to_ascii_lowercase(), variable.clone()] {
                    if let Some(path) = credentials.as_ref().map(|directory| directory.join(&name))
                        && path.is_file()
                    {
                        self.read_secret(setting, &path, "CREDENTIALS_DIRECTORY");
                    }
                }
                let file_variable = format!("{variable}_FILE");
                if let Some(path) = self.env.get(&file_variable).map(PathBuf::from) {
                    self.read_secret(setting, &path, &file_variable);
                }
            }
        }
    }

    fn read_secret(&mut self, setting: &Setting, path: &Path, origin: &str) {
        match std::fs::read_to_string(path) {
            // An empty file says that there is none: Redis without a password.
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => self.secret_files.push((
                setting.key,
                format!("{origin} ({})", path.display()),
                text.trim_end_matches(['\n', '\r']).to_owned(),
            )),
            Err(error) => {
                self.problems.push(Problem::new(origin, format!("cannot read {}: {error}", path.display())));
            }
        }
    }
}
