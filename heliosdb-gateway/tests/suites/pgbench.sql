-- pgbench: its tables, and the statements of its built-in scripts.
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))
----
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88))
----
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84))
----
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))
-- queries
BEGIN
----
UPDATE pgbench_accounts SET abalance = abalance + 5 WHERE aid = 1
----
SELECT abalance FROM pgbench_accounts WHERE aid = 1
----
UPDATE pgbench_tellers SET tbalance = tbalance + 5 WHERE tid = 1
----
UPDATE pgbench_branches SET bbalance = bbalance + 5 WHERE bid = 1
----
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 1, 5, CURRENT_TIMESTAMP)
----
END
