//! A directory for each lane, where its worker's temporary files go.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Access, Provider, Resource, ResourceKind, Site};
use crate::address::Address;
use crate::mark::{Mark, Owner};
use crate::name::{Place, Tag};

/// Directories within the run's own.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    tag: Tag,
    /// What the run's own directory says of itself.
    label: Option<String>,
}

/// A file in the run's own directory: its mark, and below that where its lock is.
const LABEL: &str = "run";

/// Reads what a directory says of itself: whose it is, and where that run's lock is; `None`
/// where it is no run's of this user, or has another name than that run's would.
pub fn read_label(directory: &Path) -> Option<(Mark, PathBuf)> {
    // Anybody may put a directory into a temporary folder.
    if fs::symlink_metadata(directory).ok()?.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    let label = fs::read_to_string(directory.join(LABEL)).ok()?;
    let (mark, lock) = label.split_once('\n')?;
    let mark = Mark::parse(mark).filter(|mark| mark.place == Place::Run)?;
    let is_its = directory.file_name()?.to_str()? == format!("isolane-{}", mark.run.tag());
    is_its.then(|| (mark, PathBuf::from(lock.trim_end_matches('\n'))))
}

impl Directories {
    /// What the ledger calls the machine's own file system.
    pub const ID: &'static str = "local";

    /// The run's directory is `root`, the lanes' are in it.
    pub fn new(root: PathBuf, tag: Tag) -> Self {
        Self { root, tag, label: None }
    }

    /// The same for a run that is about to make them.
    pub fn of_run(root: PathBuf, owner: &Owner, lock: &Path) -> Self {
        let label = format!("{}\n{}\n", owner.mark(Place::Run), lock.display());
        Self { label: Some(label), ..Self::new(root, owner.run.tag()) }
    }

    fn path(&self, place: Place) -> PathBuf {
        match place {
            Place::Run => self.root.clone(),
            Place::Lane(_) | Place::Spare | Place::Template => self.root.join(place.prefix(&self.tag)),
        }
    }
}

/// Makes a directory that only its owner can enter. Root's may be passed through by who
/// knows the way: root's tests start servers as other users, in temporary directories.
fn make_private(path: &Path) -> io::Result<()> {
    let permissions = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
    match fs::DirBuilder::new().mode(permissions).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Removes a directory with all in it; none is success. Tests leave directories that
/// their owner may not list or change: those are opened up first.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Not through symbolic links: what they point to is not ours.
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

impl Site for Directories {
    fn id(&self) -> &'static str {
        Self::ID
    }

    fn disconnect(&self, _resource: &Resource) -> anyhow::Result<()> {
        Ok(())
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        remove_tree(Path::new(&resource.name)).with_context(|| format!("cannot remove the directory {}", resource.name))
    }
}

impl Provider for Directories {
    fn summary(&self) -> String {
        "a directory for each lane".to_owned()
    }

    fn needs_template(&self) -> bool {
        false
    }

    fn plan(&self, place: Place) -> Vec<Resource> {
        let name = self.path(place).display().to_string();
        vec![Resource { provider: self.id().to_owned(), kind: ResourceKind::Directory, name, place }]
    }

    fn create(&self, resource: &Resource) -> anyhow::Result<()> {
        let path = Path::new(&resource.name);
        let label = self.label.as_ref().filter(|_| resource.place == Place::Run);
        make_private(path)
            .and_then(|()| label.map_or(Ok(()), |label| fs::write(path.join(LABEL), label)))
            .with_context(|| format!("cannot make the directory {}", resource.name))
    }

    fn verify(&self, _place: Place) -> anyhow::Result<()> {
        Ok(())
    }

    fn seal_template(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn is_untouched(&self, _lanes: &[Resource]) -> bool {
        false
    }

    fn address(&self, _address: &Address, _place: Place) -> Option<String> {
        None
    }

    fn access(&self, place: Place) -> Access {
        let path = self.path(place).display().to_string();
        Access {
            variables: vec![("ISOLANE_DIR".to_owned(), path.clone()), ("TMPDIR".to_owned(), path.clone())],
            names: vec![("dir", path)],
            schema: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_tree_goes_whatever_its_modes_and_links_stay_within() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("mkdir");
        fs::write(outside.join("file"), "x").expect("write");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("mkdir");
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).expect("link");
        fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o500)).expect("chmod");
        remove_tree(&tree).expect("removed");
        remove_tree(&tree).expect("removed twice");
        assert!(!tree.exists() && outside.join("file").exists());
    }
}
