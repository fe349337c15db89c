//! What a payload leaves open about the guest: its blueprint says it, or the configuration.

use serde_json::Value;
use uuid::Uuid;

use super::{CreateService, error::CreateError, payload::CreateSpec};
use crate::adapters::db::pods;

/// What the blueprint and the configuration add to the payload.
pub(super) struct Defaults {
    pub(super) template: String,
    pub(super) blueprint_id: Option<Uuid>,
}

impl CreateService {
    /// Kind and template: payload, blueprint, configuration.
    pub(super) async fn defaults_of(&self, spec: &CreateSpec) -> Result<Defaults, CreateError> {
        let mut template = self.defaults.template.clone();
        let mut kind = spec.kind.map(|kind| kind.as_str().to_owned());
        let mut blueprint_id = None;
        if let Some(name) = &spec.blueprint {
            let (id, blueprint) = pods::blueprint(&self.db, name)
                .await?
                .ok_or_else(|| CreateError::UnknownBlueprint(name.clone()))?;
            blueprint_id = Some(id);
            if let Some(text) = text_of(&blueprint, id, "ostemplate")? {
                template = text;
            }
            if let (None, Some(text)) = (&kind, text_of(&blueprint, id, "kind")?) {
                kind = Some(text.to_ascii_lowercase());
            }
        }
        if kind.is_some_and(|kind| kind != "lxc") {
            return Err(CreateError::KindNotOffered);
        }
        Ok(Defaults { template, blueprint_id })
    }
}

fn text_of(spec: &Value, id: Uuid, field: &'static str) -> Result<Option<String>, CreateError> {
    match spec.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.len() <= 255 && !text.contains(char::is_whitespace) => {
            Ok(Some(text.clone()))
        }
        Some(_) => {
            Err(CreateError::BadBlueprint { id, field, problem: "must be text without blanks".to_owned() })
        }
    }
}
