//! Fault points: named places before and after every step that makes or removes anything,
//! where a test lets this process die, fail or stand still. Release builds have none.
//!
//! `ISOLANE_FAULT=create:after:2=kill` kills this process the second time that it comes to
//! the point after a creation. A point that is struck says so on stderr. `every:point=tell`
//! strikes none, and tells which are passed.

/// Steps that make or remove something, or that say so to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Taking the run's lock on this machine.
    Lock,
    /// Writing the run into the ledger.
    Announce,
    /// Starting the watchdog.
    Arm,
    /// Taking the run's lock on a server.
    Claim,
    /// Promising a resource: writing it into the ledger.
    Promise,
    /// Making a resource.
    Create,
    /// Marking a resource on its server.
    Mark,
    /// Filling a resource with what its source has.
    Fill,
    /// Closing the template.
    Seal,
    /// Keeping the template for later runs.
    Keep,
    /// Giving a lane to a worker.
    HandOut,
    /// Making a lane as its template again.
    Renew,
    /// Starting the command.
    Start,
    /// Stopping what the command left running.
    Stop,
    /// Ending sessions in a resource.
    Disconnect,
    /// Reading which rows were written.
    Harvest,
    /// Removing rows among the user's own.
    Rows,
    /// Removing a resource.
    Remove,
    /// Writing the run's end into the ledger.
    Close,
    /// Telling the watchdog that all is done.
    Dismiss,
    /// Freeing the run's lock.
    Release,
}

impl Step {
    /// All of them, in the order of a run.
    pub const ALL: [Self; 21] = [
        Self::Lock,
        Self::Announce,
        Self::Arm,
        Self::Claim,
        Self::Promise,
        Self::Create,
        Self::Mark,
        Self::Fill,
        Self::Seal,
        Self::Keep,
        Self::HandOut,
        Self::Start,
        Self::Renew,
        Self::Stop,
        Self::Disconnect,
        Self::Harvest,
        Self::Rows,
        Self::Remove,
        Self::Close,
        Self::Dismiss,
        Self::Release,
    ];

    /// Its name in `ISOLANE_FAULT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Announce => "announce",
            Self::Arm => "arm",
            Self::Claim => "claim",
            Self::Promise => "promise",
            Self::Create => "create",
            Self::Mark => "mark",
            Self::Fill => "fill",
            Self::Seal => "seal",
            Self::Keep => "keep",
            Self::HandOut => "hand-out",
            Self::Renew => "renew",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Disconnect => "disconnect",
            Self::Harvest => "harvest",
            Self::Rows => "rows",
            Self::Remove => "remove",
            Self::Close => "close",
            Self::Dismiss => "dismiss",
            Self::Release => "release",
        }
    }
}

/// The point before a step. An error is one that the step may have had.
pub fn before(step: Step) -> anyhow::Result<()> {
    strike(step, "before")
}

/// The point after a step.
pub fn after(step: Step) -> anyhow::Result<()> {
    strike(step, "after")
}

#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "test builds fail here")]
fn strike(_step: Step, _side: &str) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
use armed::strike;

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::bail;
    use nix::sys::signal::{Signal, kill, raise};
    use nix::unistd::Pid;

    use super::Step;

    /// One planned fault.
    struct Fault {
        point: String,
        /// How often the point has to be passed yet.
        passes: AtomicUsize,
        deed: String,
    }

    impl Fault {
        /// `POINT[:PASS]=DEED`.
        fn parse(text: &str) -> Option<Self> {
            let (place, deed) = text.split_once('=')?;
            let words: Vec<_> = place.split(':').collect();
            let pass = words.get(2).map_or(Some(1), |pass| pass.parse().ok())?;
            let point = format!("{}:{}", words.first()?, words.get(1)?);
            Some(Self { point, passes: AtomicUsize::new(pass), deed: deed.to_owned() })
        }
    }

    pub(super) fn strike(step: Step, side: &str) -> anyhow::Result<()> {
        static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
        let fault = FAULT.get_or_init(|| std::env::var("ISOLANE_FAULT").ok().as_deref().and_then(Fault::parse));
        let Some(fault) = fault else { return Ok(()) };
        if fault.deed == "tell" {
            eprintln!("isolane: passed {}:{side}", step.name());
            return Ok(());
        }
        if fault.point != format!("{}:{side}", step.name()) || fault.passes.fetch_sub(1, Ordering::Relaxed) != 1 {
            return Ok(());
        }
        eprintln!("isolane: fault {}={}", fault.point, fault.deed);
        match fault.deed.as_str() {
            "kill" => kill(Pid::this(), Signal::SIGKILL)?,
            // The whole foreground process group.
            "kill-group" => kill(Pid::from_raw(0), Signal::SIGKILL)?,
            // Until somebody who did something meanwhile sends SIGCONT.
            "pause" => raise(Signal::SIGSTOP)?,
            "error" => bail!("an error at {}, as ISOLANE_FAULT asks for", fault.point),
            other => bail!("ISOLANE_FAULT does not know the deed {other}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_listed_once_and_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        assert_eq!(Step::ALL.len(), Step::Release as usize + 1);
    }
}
