//! What the READMEs name is there.

use std::fs;
use std::path::Path;

use crate::lab::Lab;

const READMES: [&str; 5] = [
    "README.md",
    "examples/README.md",
    "examples/shop-pytest/README.md",
    "examples/shop-nextest/README.md",
    "examples/leases/README.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).expect(file)
}

#[test]
fn links_lead_to_files() {
    for readme in READMES {
        let folder = root().join(readme);
        let folder = folder.parent().expect("a folder");
        for rest in text(readme).split("](").skip(1) {
            let target = rest.split(')').next().expect("a target");
            let outside = target.starts_with("https://");
            assert!(outside || folder.join(target).exists(), "{readme} links to {target}");
        }
    }
}

#[test]
fn options_exist() {
    let lab = Lab::new();
    let commands = [
        "",
        "run",
        "query",
        "record",
        "runs",
        "report",
        "init",
        "doctor",
        "sweep",
        "template",
        "template build",
        "lease",
        "lease acquire",
        "lease list",
        "lease renew",
        "lease revoke",
        "pool",
        "pool add",
        "pool fill",
        "leases",
        "serve",
    ];
    let help: String = commands
        .iter()
        .map(|command| {
            let words = command.split_whitespace().chain(["--help"]);
            lab.program("isolane").arg_all(words).run().assert_code(0).out().clone()
        })
        .collect();
    for readme in READMES {
        let text = text(readme);
        // What comes behind `isolane`, up to the command that it runs.
        let ours = text.lines().filter_map(|line| line.split_once("isolane ")?.1.split('`').next()).map(|words| {
            let words = shlex::split(words).unwrap_or_default();
            words.into_iter().take_while(|word| word != "--").collect::<Vec<_>>()
        });
        for words in ours {
            let command = words.first().map(String::as_str).unwrap_or_default();
            for option in words.iter().filter(|word| commands.contains(&command) && word.starts_with("--")) {
                let option: String = option.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
                assert!(
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                    "{readme}: {option}"
                );
            }
        }
    }
}
