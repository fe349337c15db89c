//! What a payload leaves open about the guest: its blueprint says it, or the configuration.

use serde_json::Value;
use uuid::Uuid;

use super::{CreateService, error::CreateError, payload::CreateSpec};
use crate::adapters::{db::pods, proxmox::GuestKind};

/// What the blueprint and the configuration add to the payload.
pub(super) struct Defaults {
    pub(super) kind: GuestKind,
    /// A container's template volume; the VMID of a machine's template.
    pub(super) template: String,
    pub(super) blueprint_id: Option<Uuid>,
}

impl CreateService {
    /// Kind and template: payload, blueprint, configuration.
    pub(super) async fn defaults_of(&self, spec: &CreateSpec) -> Result<Defaults, CreateError> {
        let mut template = None;
        let mut kind = spec.kind.map(|kind| kind.as_str().to_owned());
        let mut blueprint_id = None;
        if let Some(name) = &spec.blueprint {
            let (id, blueprint) = pods::blueprint(&self.db, name)
                .await?
                .ok_or_else(|| CreateError::UnknownBlueprint(name.clone()))?;
            blueprint_id = Some(id);
            if let Some(text) = text_of(&blueprint, id, "ostemplate")? {
                template = Some(text);
            }
            if let (None, Some(text)) = (&kind, text_of(&blueprint, id, "kind")?) {
                kind = Some(text.to_ascii_lowercase());
            }
        }
        let kind = match kind.as_deref() {
            None | Some("lxc") => GuestKind::Lxc,
            Some("vm" | "qemu") => GuestKind::Vm,
            Some(word) => return Err(CreateError::UnknownKind(word.to_owned())),
        };
        let template = match (kind, template) {
            (_, Some(template)) => template,
            (GuestKind::Lxc, None) => self.defaults.template.clone(),
            (GuestKind::Vm, None) => {
                self.defaults.vm_template_vmid.ok_or(CreateError::NoVmTemplate)?.to_string()
            }
        };
        Ok(Defaults { kind, template, blueprint_id })
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
