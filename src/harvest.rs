//! Harvesting while a run goes on: what servers saw of rows comes into the ledger, a moment
//! later than it happened. Whatever is left at the end, the sweep reads before it removes
//! anything.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::name::Place;
use crate::provider::Resource;
use crate::run::Run;

/// How often a place is looked at that all lanes write to.
const OFTEN: Duration = Duration::from_secs(1);
/// How often a lane's own database is: each takes a connection.
const SELDOM: Duration = Duration::from_secs(5);
/// What is younger than this waits: its test may not have been told of yet.
pub const MARGIN: Duration = Duration::from_millis(50);

/// The harvester of a run.
#[derive(Debug)]
pub struct Harvester {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Harvester {
    /// Starts one, in a thread of its own.
    pub fn start(run: &Arc<Run>) -> Self {
        let (stop, stopped) = channel();
        let run = Arc::clone(run);
        let thread = std::thread::spawn(move || {
            let mut lanes = Instant::now();
            while stopped.recv_timeout(OFTEN) == Err(RecvTimeoutError::Timeout) {
                let with_lanes = lanes.elapsed() >= SELDOM;
                harvest(&run, MARGIN, |resource| resource.knows_rows() || with_lanes);
                if with_lanes {
                    lanes = Instant::now();
                }
            }
        });
        Self { stop, thread }
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// Reads what the servers saw in these resources.
fn harvest(run: &Run, margin: Duration, of: impl Fn(&Resource) -> bool) {
    if !run.is_watched() {
        return;
    }
    for resource in run.inventory.made().into_iter().filter(of) {
        if let Some(provider) = run.providers.iter().find(|provider| provider.id() == resource.provider) {
            // It is tried again, at the latest when the run ends.
            let _ = run.inventory.harvest(&**provider, &resource, margin);
        }
    }
}

/// Reads what may be known of rows that a worker in this place wrote or met.
pub fn around(run: &Run, place: Place, margin: Duration) {
    harvest(run, margin, |resource| resource.knows_rows() || resource.place == place);
}
