//! The operations we use, one function each, by the API's own paths and names.

use reqwest::Method;
use serde_json::Value;

use super::{
    client::PveClient,
    error::{Class, Outcome, PveError},
    types::{GuestConfig, GuestRow, GuestStatus, Interface, NodeRow},
    upid::Upid,
};

/// A container to be created. The texts are Proxmox's own property strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The guest's id.
    pub vmid: u32,
    /// Volume id of the template.
    pub ostemplate: String,
    /// Host name.
    pub hostname: String,
    /// CPU cores.
    pub cores: u32,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Swap, MiB.
    pub swap_mb: u32,
    /// `storage:GiB`.
    pub rootfs: String,
    /// First network card.
    pub net0: String,
    /// Resource pool.
    pub pool: Option<String>,
    /// Our marks.
    pub tags: Vec<String>,
    /// One line that says whose it is.
    pub description: String,
}

impl ContainerSpec {
    /// The form of `POST /nodes/{node}/lxc`. `start=0`: a create that cannot
    /// start would end as an error although the guest exists; starting is a
    /// step of its own.
    #[must_use]
    pub fn form(&self) -> Vec<(&'static str, String)> {
        let mut form = vec![
            ("vmid", self.vmid.to_string()),
            ("ostemplate", self.ostemplate.clone()),
            ("hostname", self.hostname.clone()),
            ("cores", self.cores.to_string()),
            ("memory", self.memory_mb.to_string()),
            ("swap", self.swap_mb.to_string()),
            ("rootfs", self.rootfs.clone()),
            ("net0", self.net0.clone()),
            ("unprivileged", "1".to_owned()),
            ("onboot", "1".to_owned()),
            ("start", "0".to_owned()),
            ("tags", self.tags.join(";")),
            ("description", self.description.clone()),
        ];
        if let Some(pool) = &self.pool {
            form.push(("pool", pool.clone()));
        }
        form
    }
}

impl PveClient {
    /// Whether the API answers and takes our token.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn check(&self) -> Result<(), PveError> {
        self.get::<Value>(&["version"], &[]).await.map(|_| ())
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, PveError> {
        self.get(&["nodes"], &[]).await
    }

    /// All guests of the cluster. Up to ten seconds old: absence here proves nothing alone.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn guests(&self) -> Result<Vec<GuestRow>, PveError> {
        self.get(&["cluster", "resources"], &[("type", "vm")]).await
    }

    /// A container's configuration; `None` when this node has none.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn container_config(&self, node: &str, vmid: u32) -> Result<Option<GuestConfig>, PveError> {
        let vmid = vmid.to_string();
        match self.get(&["nodes", node, "lxc", &vmid, "config"], &[]).await {
            Ok(config) => Ok(Some(config)),
            Err(error) if error.class == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a container runs.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn container_status(&self, node: &str, vmid: u32) -> Result<GuestStatus, PveError> {
        let vmid = vmid.to_string();
        self.get(&["nodes", node, "lxc", &vmid, "status", "current"], &[]).await
    }

    /// A running container's network cards.
    ///
    /// # Errors
    /// [`PveError`].
    pub async fn container_interfaces(&self, node: &str, vmid: u32) -> Result<Vec<Interface>, PveError> {
        let vmid = vmid.to_string();
        self.get::<Option<Vec<Interface>>>(&["nodes", node, "lxc", &vmid, "interfaces"], &[])
            .await
            .map(Option::unwrap_or_default)
    }

    /// Creates a container.
    pub async fn create_container(&self, node: &str, spec: &ContainerSpec) -> Outcome<Upid> {
        let form = spec.form();
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.task(Method::POST, &["nodes", node, "lxc"], &form).await
    }

    /// Starts a container.
    pub async fn start_container(&self, node: &str, vmid: u32) -> Outcome<Upid> {
        let vmid = vmid.to_string();
        self.task(Method::POST, &["nodes", node, "lxc", &vmid, "status", "start"], &[]).await
    }

    /// Stops a container at once.
    pub async fn stop_container(&self, node: &str, vmid: u32) -> Outcome<Upid> {
        let vmid = vmid.to_string();
        self.task(Method::POST, &["nodes", node, "lxc", &vmid, "status", "stop"], &[]).await
    }

    /// Destroys a stopped container, its entries in jobs and pools included.
    /// Volumes that its configuration does not name are left alone.
    pub async fn destroy_container(&self, node: &str, vmid: u32) -> Outcome<Upid> {
        let vmid = vmid.to_string();
        let parameters = [("purge", "1"), ("destroy-unreferenced-disks", "0")];
        self.task(Method::DELETE, &["nodes", node, "lxc", &vmid], &parameters).await
    }

    /// A call that answers with the name of a task.
    async fn task(&self, method: Method, path: &[&str], parameters: &[(&str, &str)]) -> Outcome<Upid> {
        match self.mutate::<String>(method.clone(), path, parameters).await {
            Outcome::Done(text) => match text.parse() {
                Ok(upid) => Outcome::Done(upid),
                Err(error) => {
                    let text = format!("{error}");
                    Outcome::Unknown(self.error(&method, path, Class::BadAnswer, None, text))
                }
            },
            Outcome::NotDone(error) => Outcome::NotDone(error),
            Outcome::Unknown(error) => Outcome::Unknown(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_never_starts_the_guest_and_names_no_empty_pool() {
        let spec = ContainerSpec {
            vmid: 121,
            ostemplate: "local:vztmpl/t".to_owned(),
            hostname: "shop".to_owned(),
            cores: 2,
            memory_mb: 2048,
            swap_mb: 512,
            rootfs: "clients-main:20".to_owned(),
            net0: "name=eth0".to_owned(),
            pool: None,
            tags: vec!["a".to_owned(), "b".to_owned()],
            description: "d".to_owned(),
        };
        let form = spec.form();
        assert!(form.contains(&("start", "0".to_owned())) && form.contains(&("tags", "a;b".to_owned())));
        assert!(form.iter().all(|(name, _)| !matches!(*name, "pool" | "lock" | "force")));
    }
}
