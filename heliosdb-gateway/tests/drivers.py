"""Runs asyncpg and psycopg2 against a direct connection and through helios, and compares what they get.

Usage: drivers.py DIRECT_PORT HELIOS_PORT
"""

import asyncio
import sys

import asyncpg
import psycopg2

READS = [
    ("SELECT * FROM things WHERE id = $1", [7]),
    ("SELECT count(*), sum(price), max(at) FROM things", []),
    ("SELECT name FROM things WHERE name = $1 ORDER BY id", ["thing 3"]),
    ("SELECT array_agg(id ORDER BY id), jsonb_build_object('n', count(*))::text FROM things WHERE id < $1", [5]),
]


async def run_asyncpg(port):
    pool = await asyncpg.create_pool(
        host="127.0.0.1", port=port, user="postgres", database="postgres", min_size=2, max_size=4
    )
    answers = []
    for _ in range(3):
        for sql, args in READS:
            answers.append([tuple(row) for row in await pool.fetch(sql, *args)])
    async with pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute("UPDATE things SET price = price + 1 WHERE id = $1", 7)
            answers.append(await connection.fetchval("SELECT price FROM things WHERE id = 7"))
        statement = await connection.prepare("SELECT price FROM things WHERE id = $1")
        answers.append([await statement.fetchval(7) for _ in range(3)])
        await connection.executemany("UPDATE things SET price = price - $1 WHERE id = 7", [(1,), (0,)])
        answers.append(await statement.fetchval(7))
        try:
            await connection.fetch("SELECT 1 / $1::int", 0)
        except asyncpg.DivisionByZeroError as error:
            answers.append(error.sqlstate)
        answers.append(await connection.copy_records_to_table("lines", records=[(1, "a"), (2, "b")]))
        answers.append([tuple(row) for row in await connection.fetch("SELECT * FROM lines ORDER BY n, text")])
        await connection.execute("TRUNCATE lines")
        async with connection.transaction():
            answers.append([tuple(row) async for row in connection.cursor("SELECT id FROM things ORDER BY id LIMIT 60")])
        answers.append(await listen_asyncpg(connection))
    await pool.close()
    return answers


async def listen_asyncpg(connection):
    heard = asyncio.Queue()

    def note(listener, pid, channel, payload):
        heard.put_nowait((pid == listener.get_server_pid(), channel, payload))

    await connection.add_listener("News", note)
    async with connection.transaction():
        await connection.execute("SELECT pg_notify($1, $2)", "News", "first")
        await connection.execute("NOTIFY \"News\", 'second'")
    answer = [await asyncio.wait_for(heard.get(), 10) for _ in range(2)]
    await connection.remove_listener("News", note)
    return answer


def run_psycopg2(port):
    answers = []
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        for _ in range(3):
            cursor.execute("SELECT * FROM things WHERE id = %s", (9,))
            answers.append(cursor.fetchall())
        cursor.execute("SET TimeZone = 'Asia/Tokyo'")
        cursor.execute("SELECT at FROM things WHERE id = 1")
        answers.append(str(cursor.fetchall()))
        cursor.execute("RESET TimeZone")
        cursor.execute("SELECT at FROM things WHERE id = 1")
        answers.append(str(cursor.fetchall()))
    connection.autocommit = False
    with connection.cursor() as cursor:
        cursor.execute("UPDATE things SET name = 'gone' WHERE id = 9")
        cursor.execute("SELECT name FROM things WHERE id = 9")
        answers.append(cursor.fetchall())
    connection.rollback()
    with connection.cursor("by_name") as cursor:
        cursor.execute("SELECT id FROM things ORDER BY id")
        answers.append(cursor.fetchmany(5))
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute("LISTEN news")
        cursor.execute("SELECT id FROM things WHERE id = 1")
        connection.commit()
        cursor.execute("NOTIFY news, 'own'")
        connection.commit()
    own = connection.info.backend_pid
    answers.append([(told.pid == own, told.channel, told.payload) for told in connection.notifies])
    connection.close()
    return answers


def main():
    direct, helios = (int(port) for port in sys.argv[1:3])
    for name, run in [("asyncpg", lambda port: asyncio.run(run_asyncpg(port))), ("psycopg2", run_psycopg2)]:
        expected = run(direct)
        for attempt in ["first", "second"]:
            got = run(helios)
            assert got == expected, f"{name}, {attempt} run:\n{got}\nexpected\n{expected}"
        print(f"{name}: {len(expected)} answers equal")


main()
