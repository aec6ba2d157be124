//! `cargo run --bin migrate` makes the tables and fills the shelf; doing it twice does no harm.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut db = shop::connect()?;
    shop::migrate(&mut db)?;
    shop::seed(&mut db)?;
    Ok(())
}
