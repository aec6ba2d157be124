//! Which processes belong to a test: asked of the operating system.

use std::fs;
use std::path::Path;

/// The live processes that work in `folder` or have it in their environment, as
/// `pid command`. A zombie is dead.
pub fn alive_in(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut found: Vec<String> = processes.filter_map(|entry| describe(&entry.path(), folder)).collect();
    found.sort();
    found
}

fn describe(process: &Path, folder: &Path) -> Option<String> {
    let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
    let here = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
    let needle = folder.as_os_str().as_encoded_bytes();
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    if !here && !environment.windows(needle.len()).any(|window| window == needle) {
        return None;
    }
    is_alive(pid).then(|| {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        format!("{pid} {}", String::from_utf8_lossy(&command).replace('\0', " "))
    })
}

/// Whether this process lives and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
