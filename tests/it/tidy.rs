//! The project checks its own order.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The modules of the library, bottom to top.
fn layers() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    text.lines().filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned())).collect()
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn source_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files_below(&root().join("src"), &mut found);
    found.retain(|path| path.extension().is_some_and(|ending| ending == "rs"));
    found
}

/// The names that follow `crate::` in the code of a file, its comments left out.
fn used_modules(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut used = Vec::new();
    for line in code {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            used.push(name);
        }
    }
    used
}

#[test]
fn a_file_uses_only_what_stands_above_it_in_the_list_of_modules() {
    let layers = layers();
    let rank = |name: &str| layers.iter().position(|layer| layer == name);
    let mut seen = 0;
    for path in source_files() {
        let within = path.strip_prefix(root().join("src")).expect("below src");
        let first = within.components().next().expect("a name").as_os_str().to_str().expect("text");
        let own = first.trim_end_matches(".rs");
        let Some(own_rank) = rank(own) else { continue };
        for used in used_modules(&fs::read_to_string(&path).expect("source")) {
            let used_rank = rank(&used)
                .unwrap_or_else(|| panic!("{} uses crate::{used}, which lib.rs does not list", path.display()));
            assert!(used_rank <= own_rank, "{} uses crate::{used}, which stands below {own}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "the test looks at the code: {seen}");
}

#[test]
fn drivers_stay_in_their_rooms() {
    let rooms = [
        ("use postgres::", &["provider"][..]),
        ("postgres_protocol", &["provider/postgres", "provider/servers"]),
        (
            "rusqlite",
            &[
                "ledger",
                "provider/sqlite",
                "inventory",
                "roster",
                "story",
                "sweep/dead",
                "commands",
                "supervisor",
                "client",
                "serve",
            ],
        ),
        ("axum", &["api", "catalogue", "client", "serve"]),
        ("comfy_table", &["report"]),
        ("clap", &["cli", "main", "commands", "settings", "report"]),
    ];
    for path in source_files() {
        let within = path.strip_prefix(root().join("src")).expect("below src").to_str().expect("text");
        let text = fs::read_to_string(&path).expect("source");
        for (driver, homes) in rooms {
            let uses = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(driver));
            // A module of that name is not the driver.
            let is_module = driver.starts_with("use ") && text.contains("mod postgres;");
            assert!(!uses || is_module || homes.iter().any(|home| within.starts_with(home)), "{within} uses {driver}");
        }
    }
}

#[test]
fn only_sweep_and_renewal_remove() {
    for path in source_files() {
        let text = fs::read_to_string(&path).expect("source");
        let may = ["src/sweep.rs", "src/renewal.rs"].iter().any(|file| path.ends_with(file));
        let code = text.split("#[cfg(test)]").next().expect("a part");
        assert!(may || !code.contains("provider.remove("), "{} removes by itself", path.display());
    }
}

#[test]
fn the_top_level_holds_what_it_should() {
    let wanted = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "src",
        "shims",
        "tests",
        "examples",
        "benches",
    ];
    let ignored = ["target", "mutants.out"];
    for entry in fs::read_dir(root()).expect("the project") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        assert!(name.starts_with('.') || wanted.contains(&name.as_str()) || ignored.contains(&name.as_str()), "{name}");
    }
    for name in wanted {
        assert!(root().join(name).exists(), "{name} is missing");
    }
}
