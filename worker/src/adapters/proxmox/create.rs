//! Making guests: containers from a template, virtual machines by cloning one.

use reqwest::Method;

use super::{
    client::PveClient,
    error::{Class, Outcome},
    guest::borrowed,
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

/// A virtual machine to be cloned from a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneSpec {
    /// The template's id.
    pub template: u32,
    /// The new guest's id.
    pub vmid: u32,
    /// Its name.
    pub name: String,
    /// Storage of its disks.
    pub storage: String,
    /// Resource pool.
    pub pool: Option<String>,
    /// The node it is to be on.
    pub target: String,
    /// One line that says whose it is. (A clone takes no tags.)
    pub description: String,
}

impl CloneSpec {
    /// The form of `POST /nodes/{node}/qemu/{template}/clone`.
    fn form(&self) -> Vec<(&'static str, String)> {
        let mut form = vec![
            ("newid", self.vmid.to_string()),
            ("name", self.name.clone()),
            ("full", "1".to_owned()),
            ("storage", self.storage.clone()),
            ("target", self.target.clone()),
            ("description", self.description.clone()),
        ];
        if let Some(pool) = &self.pool {
            form.push(("pool", pool.clone()));
        }
        form
    }
}

impl PveClient {
    /// Creates a container.
    pub async fn create_container(&self, node: &str, spec: &ContainerSpec) -> Outcome<Upid> {
        self.task(Method::POST, &["nodes", node, "lxc"], &borrowed(&spec.form())).await
    }

    /// Clones a virtual machine from a template on `node`.
    pub async fn clone_machine(&self, node: &str, spec: &CloneSpec) -> Outcome<Upid> {
        let template = spec.template.to_string();
        let path = ["nodes", node, "qemu", &template, "clone"];
        self.task(Method::POST, &path, &borrowed(&spec.form())).await
    }

    /// A call that answers with the name of a task.
    pub(super) async fn task(
        &self,
        method: Method,
        path: &[&str],
        parameters: &[(&str, &str)],
    ) -> Outcome<Upid> {
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
