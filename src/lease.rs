//! Leases: which worker may use which piece of pooled test data, and until when.
//!
//! What cannot be made per worker (an account at a payment provider, a licensed device, a
//! customer with six months of invoices) is an [`item::Item`] of a pool, and a lease is a
//! worker's exclusive, time-limited right to it. All rules stand here, without any database:
//! a [`board::Board`] holds the pools and who holds and awaits what, and every change of it
//! happens in one serial transaction of a [`store::Store`], which keeps it. Two processes
//! with one store have a board each, and each reads what the other changed before it changes
//! anything itself.

pub mod ask;
pub mod board;
pub mod definition;
pub mod grant;
pub mod input;
pub mod item;
pub mod origin;
pub mod predicate;
pub mod pulse;
pub mod queue;
pub mod refusal;
pub mod shelf;
pub mod store;
