import pytest

from shop import customers
from shop.database import connect


@pytest.fixture(scope="session")
def connection():
    database = connect()
    yield database
    database.close()


@pytest.fixture
def db(connection):
    """The shop; after each test its customers and orders are gone and the shelf is as seeded."""
    yield connection
    ours = "SELECT id FROM customers WHERE email LIKE ?"
    connection.change(f"DELETE FROM orders WHERE customer_id IN ({ours})", "testuser_%")
    connection.change("DELETE FROM customers WHERE email LIKE ?", "testuser_%")
    connection.change("DELETE FROM products WHERE sku LIKE ?", "TEST-%")
    connection.script("seed.sql")


@pytest.fixture
def alice(db):
    return customers.register(db, "testuser_alice@example.com", "Alice", "wonderland")


@pytest.fixture
def bob(db):
    return customers.register(db, "testuser_bob@example.com", "Bob", "builder")
