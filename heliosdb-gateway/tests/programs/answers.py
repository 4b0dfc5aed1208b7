"""What the programs of this folder have in common: they ask and change through one port, and print what they were told.

Each is run twice, on helios and on the server itself, in databases that are alike: what they print must be equal.
"""

import os

HOST = "127.0.0.1"
PORT = int(os.environ["PGPORT"])
DATABASE = os.environ["PGDATABASE"]
ROUNDS = 4


def told(what, answer):
    print(f"{what}: {answer!r}")
