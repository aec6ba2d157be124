import pathlib

import pytest
import shop
from pytest_postgresql import factories

server = factories.postgresql_noproc(load=[pathlib.Path(__file__).with_name("schema.sql")])
db = factories.postgresql("server")


@pytest.mark.parametrize("n", range(500))
def test_sells(db, n):
    shop.sells(db, n)
