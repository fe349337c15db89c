//! Scenario and golden files.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::js;
use crate::TestkitError;

/// Where every scenario's clock starts, epoch ms.
pub const EPOCH_MS: i64 = 1_700_000_000_000;

/// One scenario file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scenario {
    /// Its name; the file's when absent.
    #[serde(default)]
    pub name: String,
    /// The versions it is for; all when absent.
    pub versions: Option<Vec<String>>,
    /// Where the clock starts.
    pub clock: Option<i64>,
    /// Options of the Queue.
    #[serde(default)]
    pub queue_options: Map<String, Value>,
    /// Options of the Worker.
    #[serde(default)]
    pub worker_options: Map<String, Value>,
    /// What happens.
    pub steps: Vec<Map<String, Value>>,
}

/// A scenario, or the name of its file and why it cannot be read.
pub type Loaded = Result<Scenario, (String, TestkitError)>;

/// What npm bullmq did with a scenario.
#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    /// What each step gave.
    pub results: Vec<Value>,
    /// What was in Redis afterwards.
    pub keys: Map<String, Value>,
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TestkitError> {
    let failed = |why: String| TestkitError::failed(format!("read {}", path.display()), why);
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    // Redis and Rust hold no halves of characters; what BullMQ left of one is U+FFFD.
    js::parse(&text).map_err(|e| failed(e.to_string()))
}

impl Scenario {
    /// Every scenario of a folder, by name; a file that cannot be read is its name and why.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn load_each(folder: &Path) -> Result<Vec<Loaded>, TestkitError> {
        let entries = std::fs::read_dir(folder)
            .map_err(|e| TestkitError::failed(format!("read folder {}", folder.display()), e.to_string()))?;
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "json"))
            .collect();
        files.sort();
        let load = |path: &PathBuf| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match read::<Self>(path) {
                Ok(scenario) if scenario.name.is_empty() => Ok(Self { name: stem, ..scenario }),
                Ok(scenario) => Ok(scenario),
                Err(error) => Err((stem, error)),
            }
        };
        Ok(files.iter().map(load).collect())
    }

    /// Every scenario of a folder, by name.
    ///
    /// # Errors
    /// When the folder or a file cannot be read.
    pub fn load_all(folder: &Path) -> Result<Vec<Self>, TestkitError> {
        Self::load_each(folder)?.into_iter().map(|loaded| loaded.map_err(|(_, error)| error)).collect()
    }

    /// Whether it is run for a version.
    #[must_use]
    pub fn is_for(&self, version: &str) -> bool {
        self.versions.as_ref().is_none_or(|v| v.iter().any(|name| name == version))
    }
}

impl Golden {
    /// The golden of a scenario, if the folder has one.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn load(folder: &Path, scenario: &str) -> Result<Option<Self>, TestkitError> {
        let path = folder.join(format!("{scenario}.json"));
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }
}
