//! A small shop on PostgreSQL: customers, orders and stock.

pub mod customers;
pub mod orders;
pub mod stock;

use std::error::Error;
use std::fmt;

use postgres::{Client, NoTls};

/// Why the shop says no.
#[derive(Debug)]
pub enum Refusal {
    EmailTaken,
    EmptyBasket,
    NotOpen,
    SoldOut(String),
    Database(postgres::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmailTaken => f.write_str("this e-mail address has an account already"),
            Self::EmptyBasket => f.write_str("the basket is empty"),
            Self::NotOpen => f.write_str("the order is not open any more"),
            Self::SoldOut(sku) => write!(f, "{sku} is sold out"),
            Self::Database(error) => write!(f, "{error}"),
        }
    }
}

impl Error for Refusal {}

impl From<postgres::Error> for Refusal {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error)
    }
}

/// Opens the database that `DATABASE_URL` names.
pub fn connect() -> Result<Client, Box<dyn Error>> {
    let url =
        std::env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL, for example to postgresql://localhost/shop")?;
    Ok(Client::connect(&url, NoTls)?)
}

/// Makes the tables where they are missing.
pub fn migrate(db: &mut Client) -> Result<(), postgres::Error> {
    db.batch_execute(include_str!("schema.sql"))
}

/// Fills the shelf, or puts it back to how it was.
pub fn seed(db: &mut Client) -> Result<(), postgres::Error> {
    db.batch_execute(include_str!("seed.sql"))
}
