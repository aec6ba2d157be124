import os

import psycopg
import pytest
import shop


@pytest.fixture(scope="session")
def db():
    with psycopg.connect(os.environ["DATABASE_URL"]) as db:
        yield db


@pytest.mark.parametrize("n", range(500))
def test_sells(db, n):
    shop.sells(db, n)
