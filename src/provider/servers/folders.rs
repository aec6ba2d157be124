//! Folders with servers in them, whoever made them: their path is all that is needed to undo them.

use super::cluster::Cluster;
use crate::provider::{Resource, ResourceKind, Site};

/// Folders of servers, whoever made them.
#[derive(Debug)]
pub struct ServerFolders {
    id: String,
}

impl ServerFolders {
    /// How every id begins.
    pub const SCHEME: &'static str = "servers:";

    /// The servers that the ledger has under this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into() }
    }
}

impl Site for ServerFolders {
    fn id(&self) -> &str {
        &self.id
    }

    fn disconnect(&self, resource: &Resource) -> anyhow::Result<()> {
        // A server that has stopped has no sessions.
        Cluster::at(&resource.name).stop()
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        let cluster = Cluster::at(&resource.name);
        if resource.kind == ResourceKind::Process { cluster.stop() } else { cluster.remove() }
    }
}
