-- Reads what statement classification needs to know about one database.
--
-- Sent as one simple query; works on PostgreSQL 13 to 18 as an ordinary role. Names in other schemas
-- must come out qualified, hence the empty search_path. pg_get_viewdef() waits for whoever holds an
-- exclusive lock on a table: give up rather than wait behind a migration.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL search_path = '';
SET LOCAL standard_conforming_strings = on;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;
SET LOCAL client_encoding = 'UTF8';
-- The server overestimates what is read here, and would compile for longer than it then runs.
SET LOCAL jit = off;
-- 0: the database
SELECT pg_catalog.getdatabaseencoding(),
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_event_trigger),
       -- An "=" of the users, or an implicit cast, that could take part in comparing a key.
       EXISTS (SELECT FROM pg_catalog.pg_operator
                WHERE oid >= 16384 AND oprname = '='
                  AND oprleft IN (20, 21, 23, 25, 1043, 2950) AND oprright IN (20, 21, 23, 25, 1043, 2950))
       OR EXISTS (SELECT FROM pg_catalog.pg_cast
                   WHERE oid >= 16384 AND castcontext = 'i' AND castsource IN (20, 21, 23, 25, 1043, 2950));
-- 1: relations. A type holds what its base type, elements, fields or bounds hold. (Before PostgreSQL 14 there are no
-- multiranges, and no column of pg_range to name.)
-- Most columns are of built-in types that hold none of what is looked for: the rest are found in one pass.
WITH RECURSIVE attributes AS MATERIALIZED (
  SELECT attrelid, atttypid FROM pg_catalog.pg_attribute
   WHERE attnum > 0 AND NOT attisdropped
     AND (atttypid >= 16384
          OR atttypid IN (SELECT oid FROM pg_catalog.pg_type
                           WHERE typname ~ '^_?reg' OR typname ~ '^_?(aclitem|time|timetz)$'))),
parts AS MATERIALIZED (
  SELECT typelem AS part, oid AS holder FROM pg_catalog.pg_type WHERE typelem <> 0
  UNION ALL
  SELECT typbasetype, oid FROM pg_catalog.pg_type WHERE typbasetype <> 0
  UNION ALL
  SELECT rngsubtype, rngtypid FROM pg_catalog.pg_range
  UNION ALL
  SELECT rngtypid, (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::pg_catalog.oid FROM pg_catalog.pg_range r
  UNION ALL
  SELECT a.atttypid, c.reltype FROM attributes a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
   WHERE c.oid >= 16384 AND c.reltype <> 0),
held AS (
  SELECT oid AS holder, typname = 'time' AS is_time FROM pg_catalog.pg_type
   WHERE typnamespace = 11 AND (typname ~ '^reg' OR typname IN ('aclitem', 'time', 'timetz'))
  UNION
  SELECT parts.holder, held.is_time FROM held JOIN parts ON parts.part = held.holder),
columns AS (
  SELECT a.attrelid, pg_catalog.bool_or(NOT held.is_time) AS are_unstable, pg_catalog.bool_or(held.is_time) AS have_time
    FROM attributes a JOIN held ON held.holder = a.atttypid GROUP BY a.attrelid)
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity,
       EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
       EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type <> '1'),
       columns.are_unstable,
       EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
                  AND p.prosrc ~* '\m(alter|drop|grant|revoke)\M|\mcreate\M(?!\s+((local|global)\s+)?temp)'),
       columns.have_time
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN columns ON columns.attrelid = c.oid
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_(toast|temp)';
-- 2: inheritance and partitions
SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits;
-- 3: foreign keys
SELECT confrelid, conrelid, confdeltype, confupdtype FROM pg_catalog.pg_constraint
 WHERE contype = 'f';
-- 4: built-in functions by name
SELECT p.proname,
       pg_catalog.bool_or(p.provolatile = 'i'), pg_catalog.bool_or(p.provolatile = 's'),
       pg_catalog.bool_or(p.provolatile = 'v'),
       pg_catalog.bool_or(p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1 AND a.typtype IN ('c', 'p')),
       pg_catalog.bool_or(r.typcategory IN ('S', 'X', 'P', 'A'))
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_type r ON r.oid = p.prorettype
  LEFT JOIN pg_catalog.pg_type a ON a.oid = p.proargtypes[0]
 WHERE p.oid < 16384 AND p.pronamespace = 11
 GROUP BY p.proname;
-- 5: other functions. The words of one that is not VOLATILE that are names of functions: it may call one that is.
SELECT p.oid, n.nspname, p.proname, p.provolatile, l.lanname IN ('c', 'internal'), x.extname,
       p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1
         AND COALESCE(a.typtype IN ('c', 'p') OR b.typtype = 'c', false),
       r.typcategory IN ('S', 'X', 'P', 'A'),
       l.lanname NOT IN ('c', 'internal')
         AND s.source ~* '\mset_config\M|\mpg_(try_)?advisory_lock|\mpg_temp\M|\m(create(\s+(local|global))?|into)\s+temp|\mwith\s+hold\M|(^|[;''"]|\m(begin|then|else|loop))\s*(set|reset|discard|listen|unlisten|load|prepare)\s',
       p.prosrc ~* '\m(alter|drop|grant|revoke)\M|\mcreate\M(?!\s+((local|global)\s+)?temp)',
       CASE WHEN p.provolatile <> 'v' AND l.lanname NOT IN ('c', 'internal') THEN
         (SELECT pg_catalog.string_agg(DISTINCT word, ' ')
            FROM pg_catalog.regexp_split_to_table(s.source || ' ' || pg_catalog.lower(s.source), '[^[:alnum:]_]+') word
           WHERE word IN (SELECT proname::pg_catalog.text FROM pg_catalog.pg_proc WHERE oid >= 16384))
       END
  FROM pg_catalog.pg_proc p
  CROSS JOIN LATERAL (SELECT CASE WHEN p.prosrc = '' AND p.prokind IN ('f', 'p') THEN pg_catalog.pg_get_functiondef(p.oid)
                                  ELSE p.prosrc END AS source) s
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  JOIN pg_catalog.pg_type r ON r.oid = p.prorettype
  LEFT JOIN pg_catalog.pg_type a ON a.oid = p.proargtypes[0]
  LEFT JOIN pg_catalog.pg_type b ON b.oid = a.typbasetype
  LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.objid = p.oid AND d.deptype = 'e'
  LEFT JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
 WHERE p.oid >= 16384 OR p.pronamespace <> 11;
-- 6: the functions that an aggregate of the users runs
SELECT aggfnoid::pg_catalog.oid, f.oid
  FROM pg_catalog.pg_aggregate g,
       LATERAL (VALUES (aggtransfn::pg_catalog.oid), (aggfinalfn::pg_catalog.oid),
                       (aggcombinefn::pg_catalog.oid), (aggserialfn::pg_catalog.oid),
                       (aggdeserialfn::pg_catalog.oid), (aggmtransfn::pg_catalog.oid),
                       (aggminvtransfn::pg_catalog.oid), (aggmfinalfn::pg_catalog.oid)) f (oid)
 WHERE aggfnoid >= 16384 AND f.oid >= 16384;
-- 7: operators that are not built in; and what sorts, groups and compares without naming an operator, which a class may
-- call by any name
SELECT o.oprname, o.oprcode::pg_catalog.oid, r.typcategory IN ('S', 'X', 'P', 'A')
  FROM pg_catalog.pg_operator o LEFT JOIN pg_catalog.pg_type r ON r.oid = o.oprresult
 WHERE o.oid >= 16384
UNION ALL
SELECT n.name, f.function, false
  FROM (SELECT p.amproc::pg_catalog.oid AS function, o.opfmethod AS method
          FROM pg_catalog.pg_amproc p JOIN pg_catalog.pg_opfamily o ON o.oid = p.amprocfamily
        UNION ALL
        SELECT o.oprcode::pg_catalog.oid, a.amopmethod
          FROM pg_catalog.pg_amop a JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr) f
  JOIN pg_catalog.pg_am m ON m.oid = f.method,
       (VALUES ('<'), ('='), ('>')) n (name)
 WHERE m.amname IN ('btree', 'hash') AND f.function >= 16384;
-- 8: casts that are not built in, by function or by the text of a value where the target's input depends on more
SELECT c.casttarget, c.castfunc, c.castcontext
  FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_type t ON t.oid = c.casttarget
 WHERE c.oid >= 16384
   AND (c.castmethod = 'f'
        OR c.castmethod = 'i' AND (t.typcategory = 'D' OR t.typtype NOT IN ('b', 'e')
                                   OR t.typname ~ '^reg' OR t.typname = 'aclitem'));
-- 9: types
SELECT t.oid, n.nspname, t.typname, t.typtype, t.typcategory,
       EXISTS (SELECT FROM pg_catalog.pg_depend d
                WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
                  AND d.objid = t.oid AND d.deptype = 'e')
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typcategory <> 'A' AND n.nspname !~ '^pg_(toast|temp)';
-- 10: code that runs when a table is written or, through policies, read; relation 0 is a domain.
-- Function 0 is a policy that reads a view, whose functions we would have to follow.
SELECT s.relation, COALESCE(o.oprcode::pg_catalog.oid, s.object)
  FROM (SELECT a.adrelid AS relation, d.refclassid AS class, d.refobjid AS object
          FROM pg_catalog.pg_attrdef a JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = a.oid
        UNION ALL
        SELECT c.conrelid, d.refclassid, d.refobjid
          FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objid = c.oid
        UNION ALL
        SELECT p.polrelid, d.refclassid, d.refobjid
          FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND d.objid = p.oid
        UNION ALL
        SELECT 0, d.refclassid, d.refobjid
          FROM pg_catalog.pg_type t JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid
         WHERE t.typtype = 'd') s
  LEFT JOIN pg_catalog.pg_operator o
    ON s.class = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oid = s.object
 WHERE s.class IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass)
UNION ALL
SELECT p.polrelid, 0
  FROM pg_catalog.pg_policy p
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND d.objid = p.oid
  JOIN pg_catalog.pg_class v ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND v.oid = d.refobjid
 WHERE v.relkind = 'v';
-- 11: columns by names that are a date or time anywhere, and whether they are one here
WITH named AS MATERIALIZED (
  SELECT attrelid, attname, atttypid FROM pg_catalog.pg_attribute
   WHERE attnum > 0 AND NOT attisdropped
     AND attname IN (SELECT b.attname FROM pg_catalog.pg_attribute b
                       JOIN pg_catalog.pg_type u ON u.oid = b.atttypid
                      WHERE u.typcategory IN ('D', 'T') AND b.attnum > 0))
SELECT a.attrelid, a.attname, t.typcategory IN ('D', 'T')
  FROM named a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_';
-- 12: what views and materialised views select
SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('v', 'm') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_';
-- 13: columns of primary keys, in their order: place among the table's columns, and whether equal values are
-- the same bytes and stay what they are as long as no statement names the column
SELECT i.indrelid, a.attname, a.atttypid, a.atttypmod,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute b
         WHERE b.attrelid = i.indrelid AND b.attnum > 0 AND b.attnum < a.attnum AND NOT b.attisdropped),
       a.attgenerated = '' AND COALESCE(o.collisdeterministic, true)
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indrelid AND c.relkind = 'r'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts - 1) k (at)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.at]
  LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
 WHERE i.indisprimary AND i.indisvalid AND i.indimmediate
   AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
 ORDER BY i.indrelid, k.at;
-- 14: columns whose change a foreign key passes on, and whether they change with others
SELECT DISTINCT c.confrelid, a.attname, a.attgenerated <> ''
  FROM pg_catalog.pg_constraint c
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = ANY (c.confkey)
 WHERE c.contype = 'f' AND c.confupdtype IN ('c', 'n', 'd');
COMMIT;
