//! Where a run stands, and what the supervisor does about what happens: a table.

use std::sync::{Mutex, PoisonError};

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What lanes need is being made; the command is not started yet.
    Making,
    /// The command is running.
    Running,
    /// What was made is being undone.
    Cleaning,
    /// All is done.
    Over,
}

/// How often a signal has asked for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Not yet.
    Never,
    /// The first goes to the command.
    Once,
    /// The second stops the tests.
    Twice,
}

/// A run's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// How far it has come.
    pub stage: Stage,
    /// How often its end was asked for.
    pub asked: Asked,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal asks for the end.
    Signal,
    /// The command was started.
    Started,
    /// The command has ended, or will not be started.
    Ended,
    /// All that can be undone is.
    Cleaned,
}

/// What the supervisor does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    GoOn,
    /// Stop making, and undo it.
    CallOff,
    /// Let the command know.
    PassOn,
    /// Stop the tests at once.
    StopTests,
    /// End here and now; the watchdog undoes the rest.
    Leave,
    /// Undo what was made.
    Clean,
    /// Say how it went.
    Report,
}

/// Something happened that cannot in this phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen while {:?}", phase.stage)]
pub struct IllegalStep {
    phase: Phase,
    event: Event,
}

/// The table: the phase after `event`, and what is to be done.
pub fn step(phase: Phase, event: Event) -> Result<(Phase, Action), IllegalStep> {
    use {
        Asked::{Never, Once, Twice},
        Stage::{Cleaning, Making, Over, Running},
    };
    let (stage, asked, action) = match (phase.stage, phase.asked, event) {
        (Making, Never, Event::Signal) => (Cleaning, Once, Action::CallOff),
        (Making, Never, Event::Started) => (Running, Never, Action::GoOn),
        (Running, Never, Event::Signal) => (Running, Once, Action::PassOn),
        (Running, Once, Event::Signal) => (Running, Twice, Action::StopTests),
        // While it cleans there is nobody to pass a signal on to, but they count.
        (Cleaning, Never, Event::Signal) => (Cleaning, Once, Action::GoOn),
        (Cleaning, Once, Event::Signal) => (Cleaning, Twice, Action::GoOn),
        (Running | Cleaning, Twice, Event::Signal) => (Over, Twice, Action::Leave),
        // What comes after the end has nothing left to stop.
        (Over, asked, Event::Signal) => (Over, asked, Action::GoOn),
        // One that was called off is on its way home already.
        (Making, Never, Event::Ended) | (Running | Cleaning, _, Event::Ended) => (Cleaning, phase.asked, Action::Clean),
        (Cleaning, asked, Event::Cleaned) => (Over, asked, Action::Report),
        (Making, Once | Twice, _)
        | (Making | Running, _, Event::Cleaned)
        | (Running | Cleaning, _, Event::Started)
        | (Over, _, Event::Started | Event::Ended | Event::Cleaned) => return Err(IllegalStep { phase, event }),
    };
    Ok((Phase { stage, asked }, action))
}

/// A run's phase, known to all who act upon it.
#[derive(Debug)]
pub struct Progress(Mutex<Phase>);

impl Progress {
    /// A run that begins.
    pub fn begin() -> Self {
        Self(Mutex::new(Phase { stage: Stage::Making, asked: Asked::Never }))
    }

    /// Takes the step and says what is to be done.
    pub fn step(&self, event: Event) -> Result<Action, IllegalStep> {
        let mut phase = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, action) = step(*phase, event)?;
        *phase = next;
        Ok(action)
    }

    /// Whether a signal has asked for the end.
    pub fn was_asked(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked != Asked::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_a_run_is_decided() {
        use {
            Asked::{Never, Once, Twice},
            Stage::{Cleaning, Making, Over, Running},
        };
        // For each phase: signal, started, ended, cleaned; a dash is an illegal step.
        let table = [
            (Making, Never, ["Cleaning Once CallOff", "Running Never GoOn", "Cleaning Never Clean", "-"]),
            (Making, Once, ["-", "-", "-", "-"]),
            (Making, Twice, ["-", "-", "-", "-"]),
            (Running, Never, ["Running Once PassOn", "-", "Cleaning Never Clean", "-"]),
            (Running, Once, ["Running Twice StopTests", "-", "Cleaning Once Clean", "-"]),
            (Running, Twice, ["Over Twice Leave", "-", "Cleaning Twice Clean", "-"]),
            (Cleaning, Never, ["Cleaning Once GoOn", "-", "Cleaning Never Clean", "Over Never Report"]),
            (Cleaning, Once, ["Cleaning Twice GoOn", "-", "Cleaning Once Clean", "Over Once Report"]),
            (Cleaning, Twice, ["Over Twice Leave", "-", "Cleaning Twice Clean", "Over Twice Report"]),
            (Over, Never, ["Over Never GoOn", "-", "-", "-"]),
            (Over, Once, ["Over Once GoOn", "-", "-", "-"]),
            (Over, Twice, ["Over Twice GoOn", "-", "-", "-"]),
        ];
        for (stage, asked, row) in table {
            let events = [Event::Signal, Event::Started, Event::Ended, Event::Cleaned];
            for (event, expected) in events.into_iter().zip(row) {
                let taken = step(Phase { stage, asked }, event).map_or("-".to_owned(), |(phase, action)| {
                    format!("{:?} {:?} {action:?}", phase.stage, phase.asked)
                });
                assert_eq!(taken, expected, "{stage:?} {asked:?} {event:?}");
            }
        }
    }
}
