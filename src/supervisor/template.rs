//! The start of a run without the run: makes the pristine state that later runs take.

use std::ffi::OsString;
use std::time::Duration;

use super::command::came_early;
use super::start;
use crate::error::Stop;
use crate::os::process;
use crate::os::signal::Signals;
use crate::runner;
use crate::settings::Settings;

/// What was built, or was there.
#[derive(Debug)]
pub struct Built {
    /// Which, in words.
    pub template: String,
    /// How long the setup command took; nothing, where it was not needed.
    pub setup_time: Duration,
    /// What is odd, and the user should know.
    pub notices: Vec<String>,
}

/// Makes the template that runs with these settings take, unless it is there.
pub fn build_template(settings: Settings) -> anyhow::Result<Built> {
    if settings.setup.is_none() || settings.inputs.is_none() {
        return Err(Stop::usage(
            "a template is made by a command and kept until its files change: --setup and --setup-input name them, here or in isolane.toml",
        ));
    }
    let signals = Signals::listen()?;
    process::become_subreaper()?;
    let command = ["isolane", "template", "build"].map(OsString::from);
    let recognised = runner::recognise(&command);
    let started = start::start(settings, &command, &recognised, &signals).map_err(|error| match signals.read() {
        Ok(Some(arrival)) => came_early(arrival.signal),
        _ => error,
    })?;
    let template = started.run.providers.iter().find_map(|provider| provider.kept_template());
    let (setup_time, mut notices) = (started.setup_time, started.notices.clone());
    let sweep_command = started.run.settings.sweep_command.clone();
    let swept = started.undo();
    notices.extend(
        swept
            .stuck
            .iter()
            .map(|(resource, why)| format!("not removed: {} ({why}); `{sweep_command}` removes it", resource.name)),
    );
    match template {
        Some(template) => Ok(Built { template, setup_time, notices }),
        None => Err(Stop::not_started(notices.join("; "))),
    }
}
