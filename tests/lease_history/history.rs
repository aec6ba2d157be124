//! One history: its choices, its workers' notes, and what both must prove in the end.

use std::path::PathBuf;

use crate::lab::Lab;
use crate::lab::program::wait_until;
use crate::proof::{self, Note};
use crate::stores::Store;

/// A history that is made.
pub struct History {
    pub lab: Lab,
    pub seed: u64,
    pub random: fastrand::Rng,
}

impl History {
    pub fn begin() -> Self {
        let seed: u64 =
            std::env::var("ISOLANE_SEED").map_or_else(|_| fastrand::u64(..), |it| it.parse().expect("a number"));
        println!("ISOLANE_SEED={seed}");
        let lab = Lab::new();
        lab.file("worker.py", include_str!("worker.py"));
        std::fs::create_dir(lab.path("notes")).expect("a new folder");
        Self { lab, seed, random: fastrand::Rng::with_seed(seed) }
    }

    /// What the workers of these runs noted. A line that was cut off by a death says nothing.
    pub fn notes(&self, prefix: &str) -> Vec<Note> {
        let mut notes = Vec::new();
        for file in self.files() {
            if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
                let text = std::fs::read_to_string(file).expect("notes");
                notes.extend(text.lines().filter_map(|line| serde_json::from_str::<Note>(line).ok()));
            }
        }
        notes
    }

    /// How much was noted so far, in bytes.
    pub fn noted(&self) -> u64 {
        self.files().filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        std::fs::read_dir(self.lab.path("notes")).expect("a folder").map(|file| file.expect("an entry").path())
    }

    /// Waits until all is over, and fails unless nobody ever had what another had. What it was
    /// proved by comes back.
    pub fn prove(&self, store: &Store) -> String {
        let seed = self.seed;
        wait_until("nothing is held", || store.count("lease", "held") == 0);
        wait_until("nobody waits", || store.count("waiter", "waiting") == 0);
        let (grants, noted) = (store.grants(), self.notes(""));
        assert!(grants.len() > 100, "seed {seed}: a history of {} grants proves little", grants.len());
        for (what, wrong) in [
            ("the store", proof::of_ledger(&grants)),
            ("what the workers noted", proof::of_notes(&noted, &grants)),
            ("what the workers were answered", proof::of_answers(&noted, &grants)),
        ] {
            assert!(wrong.is_empty(), "seed {seed}: by {what}\n{}", wrong.join("\n"));
        }
        // All ask for the same of this pool, so who came first has the smaller fence.
        let line = store.line();
        assert!(line.len() > 10, "seed {seed}: {} waited in line", line.len());
        assert!(line.is_sorted(), "seed {seed}: somebody was served before their turn: {line:?}");
        format!("{} grants, {} notes, {} in line", grants.len(), noted.len(), line.len())
    }
}
