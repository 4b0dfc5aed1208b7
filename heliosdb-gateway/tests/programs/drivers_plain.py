"""The drivers themselves, each as it is by default: a transaction that the first statement opens and `commit` or `rollback`
ends.

Usage: drivers_plain.py psycopg | psycopg2 | pg8000 | asyncpg
"""

import asyncio
import sys

from answers import DATABASE, HOST, PORT, ROUNDS, told

TABLE = "CREATE TABLE things (id int PRIMARY KEY, name text)"
FILL = "INSERT INTO things SELECT n, 'thing ' || n FROM generate_series(1, 10) n"


def connect():
    name = sys.argv[1]
    if name == "psycopg":
        import psycopg

        return psycopg.connect(host=HOST, port=PORT, dbname=DATABASE, user="postgres")
    if name == "psycopg2":
        import psycopg2

        return psycopg2.connect(host=HOST, port=PORT, dbname=DATABASE, user="postgres")
    import pg8000.dbapi

    return pg8000.dbapi.connect(host=HOST, port=PORT, database=DATABASE, user="postgres")


def run():
    one, other = connect(), connect()

    def ask(connection, sql, *values):
        cursor = connection.cursor()
        cursor.execute(sql, values)
        # psycopg2 gives tuples, pg8000 lists.
        return [tuple(row) for row in cursor.fetchall()]

    def change(connection, sql, *values):
        connection.cursor().execute(sql, values)

    change(one, TABLE)
    change(one, FILL)
    one.commit()
    for number in range(ROUNDS):
        for connection in (one, other):
            for _ in range(7):
                for wanted in (1, 2):
                    told(f"{number}", ask(connection, "SELECT name FROM things WHERE id = %s", wanted))
                told("count", ask(connection, "SELECT count(*) FROM things"))
                connection.rollback()
        change(one, "UPDATE things SET name = name || '!' WHERE id = %s", 1)
        told("own", ask(one, "SELECT name FROM things WHERE id = %s", 1))
        told("other's", ask(other, "SELECT name FROM things WHERE id = %s", 1))
        if number % 2:
            one.rollback()
        else:
            one.commit()
        # Read committed: also in the transaction that read it before.
        told("then", ask(other, "SELECT name FROM things WHERE id = %s", 1))
        other.commit()
        try:
            ask(one, "SELECT 1 / (id - id) FROM things")
        except Exception as error:
            told("error", "division by zero" in str(error))
        one.rollback()
    one.autocommit = True
    for _ in range(3):
        told("autocommit", ask(one, "SELECT name FROM things WHERE id = %s", 3))
    change(one, "DELETE FROM things WHERE id = %s", 3)
    told("autocommit", ask(one, "SELECT name FROM things WHERE id = %s", 3))
    told("other", ask(other, "SELECT name FROM things WHERE id = %s", 3))


async def run_asyncpg():
    import asyncpg

    pool = await asyncpg.create_pool(
        host=HOST, port=PORT, database=DATABASE, user="postgres", min_size=2, max_size=2
    )
    await pool.execute(TABLE)
    await pool.execute(FILL)
    for number in range(ROUNDS):
        for _ in range(4):
            async with pool.acquire() as connection:
                told(f"{number}", await connection.fetchval("SELECT name FROM things WHERE id = $1", 1))
                async with connection.transaction():
                    told("inside", await connection.fetchval("SELECT name FROM things WHERE id = $1", 1))
                    async with connection.transaction():
                        told("nested", await connection.fetchval("SELECT count(*) FROM things"))
        async with pool.acquire() as one, pool.acquire() as other:
            transaction = one.transaction()
            await transaction.start()
            await one.execute("UPDATE things SET name = name || '!' WHERE id = $1", 1)
            told("own", await one.fetchval("SELECT name FROM things WHERE id = $1", 1))
            told("other's", await other.fetchval("SELECT name FROM things WHERE id = $1", 1))
            await (transaction.rollback() if number % 2 else transaction.commit())
            told("then", await other.fetchval("SELECT name FROM things WHERE id = $1", 1))
            async with one.transaction(isolation="repeatable_read"):
                told("before", await one.fetchval("SELECT count(*) FROM things"))
                await other.execute("DELETE FROM things WHERE id = $1", 10 - number)
                told("repeated", await one.fetchval("SELECT count(*) FROM things"))
            told("after", await one.fetchval("SELECT count(*) FROM things"))
    await pool.close()


if sys.argv[1] == "asyncpg":
    asyncio.run(run_asyncpg())
else:
    run()
