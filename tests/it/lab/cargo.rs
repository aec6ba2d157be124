//! Small crates without dependencies, for nextest and cargo test.

use std::fs;
use std::path::Path;

use super::{Lab, Program, witness};

impl Lab {
    /// Makes the project a crate whose unit tests are these; they may use
    /// `witness::note` and `witness::meet`.
    pub fn cargo(&self, name: &str, tests: &str) -> &Self {
        self.file("Cargo.toml", &manifest(name));
        self.file("src/witness.rs", witness::RUST);
        let imports = "#[allow(unused_imports)] use crate::witness;";
        self.file("src/lib.rs", &format!("#[cfg(test)] mod witness;\n#[cfg(test)] mod tests {{ {imports}\n{tests} }}"))
    }

    /// The same with the Rust client, which is in the folder `client` then. What it depends on is
    /// what isolane itself was built from, so nothing is downloaded.
    pub fn cargo_with_client(&self, name: &str, tests: &str) -> &Self {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let client = project.join("shims/rust");
        let read = |path: &Path| fs::read_to_string(path).expect("a file of the project");
        self.cargo(name, tests);
        self.file("Cargo.toml", &(manifest(name) + "[dependencies]\nisolane-client = { path = \"client\" }\n"));
        self.file("Cargo.lock", &read(&project.join("Cargo.lock")));
        self.file("client/Cargo.toml", &read(&client.join("Cargo.toml")));
        for entry in fs::read_dir(client.join("src")).expect("a folder").flatten() {
            let file = Path::new("client/src").join(entry.file_name());
            self.file(file.to_str().expect("text"), &read(&entry.path()));
        }
        self
    }

    /// `isolane run -- cargo nextest run ARGS…`.
    pub fn nextest(&self, args: &str) -> Program {
        self.wrap("", &format!("cargo nextest run --no-fail-fast {args}"))
    }
}

// Debug information would only cost time here.
fn manifest(name: &str) -> String {
    format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n\
         [profile.dev]\ndebug = 0\nincremental = false\n\n[workspace]\n"
    )
}

/// `n` tests with the same body, named `<name>_0` and so on; the body may use `NAME`.
pub fn many_tests(n: usize, name: &str, body: &str) -> String {
    let test = |number| {
        let name = format!("{name}_{number}");
        format!("#[test] fn {name}() {{ const NAME: &str = \"{name}\"; let _ = NAME; {body} }}\n")
    };
    (0..n).map(test).collect()
}
