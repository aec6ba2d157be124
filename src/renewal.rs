//! Making a lane as its template again, while its run goes on: what `--fresh test` does before
//! each test. A provider undoes what it can; what cannot be undone is removed and made again
//! under the same name, so that the inventory owes what it owed before.

use crate::fault::{self, Step};
use crate::name::Place;
use crate::provider::{Again, Directories, Leftover, Provider, Resource, ResourceKind};
use crate::run::Run;

/// What came of it.
#[derive(Debug, Default)]
pub struct Renewed {
    /// What the last test had left running or pending, and was ended.
    pub leftovers: Vec<Leftover>,
    /// Why things had to be made again that could have been undone.
    pub again: Vec<String>,
}

/// Makes everything in `place` that holds data as it was. If nobody `is_alone` with it any more,
/// whoever works in it is ended.
pub fn renew(run: &Run, place: Place, is_alone: bool) -> anyhow::Result<Renewed> {
    let mut renewed = Renewed::default();
    for provider in &run.providers {
        // It holds what the test still has open.
        if provider.id() == Directories::ID {
            continue;
        }
        // A role is nothing that a test writes into.
        let resources: Vec<_> = provider.plan(place).into_iter().filter(|it| it.kind != ResourceKind::Role).collect();
        let Some(first) = resources.first() else { continue };
        fault::before(Step::Renew)?;
        let renewal = run.inventory.in_turn(first, || provider.renew(place, is_alone));
        renewed.leftovers.extend(renewal.leftovers);
        if let Some(again) = renewal.again {
            make_again(run, &**provider, place, &resources, again == Again::InPlace)?;
            if let Again::Changed(why) = again {
                renewed.again.push(why);
            }
        }
        fault::after(Step::Renew)?;
    }
    Ok(renewed)
}

fn make_again(
    run: &Run,
    provider: &dyn Provider,
    place: Place,
    resources: &[Resource],
    is_in_place: bool,
) -> anyhow::Result<()> {
    for resource in resources.iter().rev() {
        if !is_in_place {
            provider.disconnect(resource)?;
        }
        if run.is_watched() {
            // What is not seen now is not in the ledger, and that is all.
            let _ = run.inventory.harvest(provider, resource, std::time::Duration::ZERO);
        }
        provider.remove(resource)?;
    }
    for resource in resources {
        provider.create(resource)?;
    }
    provider.verify(place)
}
