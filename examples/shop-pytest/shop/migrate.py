"""`python -m shop.migrate` makes the tables and fills the shelf; doing it twice does no harm."""

from .database import connect


def migrate(db):
    db.script("schema.sql")
    db.script("seed.sql")


if __name__ == "__main__":
    database = connect()
    migrate(database)
    database.close()
