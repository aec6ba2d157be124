//! Compiles the exec shim into a small static program, which the binary carries
//! and puts into the run directory. Cargo cannot yet embed one binary in another,
//! and the shim has no dependency, so the compiler is called for it directly.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=shims/exec/main.rs");
    println!("cargo::rerun-if-changed=shims/build.rs");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    println!("cargo::rustc-env=ISOLANE_TARGET={target}");
    let program = Path::new(&out).join("isolane-exec");
    // A static program starts a third faster than one that goes through the
    // loader; where the C library has no static form, a dynamic one still works.
    if !compile(&program, &target, true) && !compile(&program, &target, false) {
        eprintln!("the exec shim (shims/exec/main.rs) did not compile");
        exit(1);
    }
}

fn compile(program: &Path, target: &str, static_libc: bool) -> bool {
    let mut rustc = Command::new(env::var("RUSTC").expect("cargo sets RUSTC"));
    rustc.args(["--crate-name", "isolane_exec", "--edition", "2024"]);
    rustc.args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"]);
    rustc.args(["--target", target, "-o"]).arg(program);
    if static_libc {
        rustc.args(["-C", "target-feature=+crt-static"]);
    }
    rustc.arg("shims/exec/main.rs");
    rustc.status().is_ok_and(|status| status.success())
}
