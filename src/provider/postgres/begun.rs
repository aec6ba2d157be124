//! What a run begins on the server before it is needed: a login takes as long as most of what
//! follows, and several go side by side.

use super::claim;
use super::connection::{Ahead, KeptOpen};
use super::server::{COMMON, Server};
use crate::address::PostgresAddress;
use crate::name::Tag;

/// What makes the start quick, and is let go when the command runs.
#[derive(Debug, Default)]
pub struct Begun {
    /// The session of the claim.
    pub claim: Option<Ahead>,
    /// The session that the facts were asked by, for the first lane.
    open: Option<KeptOpen>,
}

impl Begun {
    /// Begins to log in where the claim will be. That is not in the user's own database, which
    /// may be copied: nobody may be connected to it then.
    pub fn begin(server: &Server, address: &PostgresAddress, tag: &Tag) -> Self {
        let claim = (address.database() != COMMON).then(|| {
            let config = server.config_of(COMMON, &claim::application(tag));
            Ahead::begin(move || claim::session(&config))
        });
        Self { claim, open: Some(server.maintenance.keep_open()) }
    }

    /// The login has few places: what only makes the start quicker takes none.
    pub fn make_do(&mut self) {
        self.open = None;
    }
}
