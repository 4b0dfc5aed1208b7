"""Logs in to helios with the drivers of the Python world. Arguments: port, root certificate, user, password."""

import asyncio
import ssl
import sys
import threading
import time

import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2

port, root, user, password = sys.argv[1:]
place = {"host": "localhost", "port": int(port), "user": user}
libpq = {**place, "dbname": "postgres", "hostaddr": "127.0.0.1", "sslmode": "verify-full", "sslrootcert": root}
context = ssl.create_default_context(cafile=root)


def by_psycopg2(password, **more):
    connection = psycopg2.connect(**libpq, password=password, **more)
    with connection.cursor() as cursor:
        cursor.execute("SELECT session_user::text")
        return cursor.fetchone()[0]


def by_psycopg(password, **more):
    with psycopg.connect(**libpq, password=password, **more) as connection:
        return connection.execute("SELECT session_user::text").fetchone()[0]


def by_pg8000(password):
    connection = pg8000.dbapi.connect(**place, database="postgres", password=password, ssl_context=context)
    cursor = connection.cursor()
    cursor.execute("SELECT session_user::text")
    return cursor.fetchone()[0]


def by_asyncpg(password):
    async def run():
        connection = await asyncpg.connect(**place, database="postgres", password=password, ssl=context)
        try:
            return await connection.fetchval("SELECT session_user::text")
        finally:
            await connection.close()

    return asyncio.run(run())


def check(name, log_in, **more):
    assert log_in(password, **more) == user, name
    try:
        log_in(password + "x", **more)
    except Exception as error:
        assert "password authentication failed" in str(error), (name, error)
    else:
        raise AssertionError(f"{name}: let in")
    print("logged in:", name)


def cancel():
    """A cancel request goes over TLS, too, where libpq can."""
    with psycopg.connect(**libpq, password=password) as connection:
        def stop():
            while connection.info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                time.sleep(0.01)
            # Until there is something to cancel, a request is in vain.
            while not ended.wait(0.1):
                connection.cancel_safe()

        ended = threading.Event()
        thread = threading.Thread(target=stop)
        thread.start()
        try:
            connection.execute("SELECT pg_sleep(30)")
        except psycopg.errors.QueryCanceled:
            print("cancelled")
        finally:
            ended.set()
            thread.join()


for name, log_in in [("psycopg2", by_psycopg2), ("psycopg", by_psycopg), ("pg8000", by_pg8000), ("asyncpg", by_asyncpg)]:
    check(name, log_in)
if "bound" in user:
    check("psycopg, bound", by_psycopg, channel_binding="require")
    check("psycopg2, bound", by_psycopg2, channel_binding="require")
    if psycopg.pq.version() >= 170000:
        check("psycopg, direct", by_psycopg, sslnegotiation="direct")
    cancel()
