//! Small crates without dependencies, for nextest and cargo test.

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
