//! An open shop for one test. After it, its customers and orders are gone and the shelf is as seeded.

use std::ops::{Deref, DerefMut};

use postgres::Client;

pub struct OpenShop(Client);

pub fn open() -> OpenShop {
    OpenShop(shop::connect().expect("the shop's database should be there and migrated"))
}

impl OpenShop {
    pub fn alice(&mut self) -> i32 {
        shop::customers::register(self, "testuser_alice@example.com", "Alice").expect("Alice should be new")
    }

    #[allow(dead_code)] // every test file compiles this one for itself, and not each has a Bob
    pub fn bob(&mut self) -> i32 {
        shop::customers::register(self, "testuser_bob@example.com", "Bob").expect("Bob should be new")
    }

    fn tidy(&mut self) -> Result<(), postgres::Error> {
        self.execute(
            "DELETE FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE email LIKE 'testuser_%')",
            &[],
        )?;
        self.execute("DELETE FROM customers WHERE email LIKE 'testuser_%'", &[])?;
        shop::seed(self)
    }
}

impl Drop for OpenShop {
    fn drop(&mut self) {
        if let Err(error) = self.tidy()
            && !std::thread::panicking()
        {
            panic!("the shop should be tidy after the test: {error}");
        }
    }
}

impl Deref for OpenShop {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl DerefMut for OpenShop {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0
    }
}
