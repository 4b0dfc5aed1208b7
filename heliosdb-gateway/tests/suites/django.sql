-- Django 5.2: the tables of its admin and of a small application, and what twelve pages of the admin ask (the index, lists,
-- forms, a history, a deletion, a form that is saved), as psycopg sends it.
CREATE TABLE auth_group (id integer NOT NULL, name character varying(150) NOT NULL)
----
CREATE TABLE auth_group_permissions (id bigint NOT NULL, group_id integer NOT NULL, permission_id integer NOT NULL)
----
CREATE TABLE auth_permission (id integer NOT NULL, name character varying(255) NOT NULL, content_type_id integer NOT NULL, codename character varying(100) NOT NULL)
----
CREATE TABLE auth_user (id integer NOT NULL, password character varying(128) NOT NULL, last_login timestamp with time zone, is_superuser boolean NOT NULL, username character varying(150) NOT NULL, first_name character varying(150) NOT NULL, last_name character varying(150) NOT NULL, email character varying(254) NOT NULL, is_staff boolean NOT NULL, is_active boolean NOT NULL, date_joined timestamp with time zone NOT NULL)
----
CREATE TABLE auth_user_groups (id bigint NOT NULL, user_id integer NOT NULL, group_id integer NOT NULL)
----
CREATE TABLE auth_user_user_permissions (id bigint NOT NULL, user_id integer NOT NULL, permission_id integer NOT NULL)
----
CREATE TABLE books_author (id bigint NOT NULL, name character varying(50) NOT NULL)
----
CREATE TABLE books_book (id bigint NOT NULL, title character varying(50) NOT NULL, author_id bigint NOT NULL, published timestamp with time zone NOT NULL)
----
CREATE TABLE django_admin_log (id integer NOT NULL, action_time timestamp with time zone NOT NULL, object_id text, object_repr character varying(200) NOT NULL, action_flag smallint NOT NULL, change_message text NOT NULL, content_type_id integer, user_id integer NOT NULL, CONSTRAINT django_admin_log_action_flag_check CHECK ((action_flag >= 0)))
----
CREATE TABLE django_content_type (id integer NOT NULL, app_label character varying(100) NOT NULL, model character varying(100) NOT NULL)
----
CREATE TABLE django_migrations (id bigint NOT NULL, app character varying(255) NOT NULL, name character varying(255) NOT NULL, applied timestamp with time zone NOT NULL)
----
CREATE TABLE django_session (session_key character varying(40) NOT NULL, session_data text NOT NULL, expire_date timestamp with time zone NOT NULL)
-- queries
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:28.369892+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "django_admin_log"."id", "django_admin_log"."action_time", "django_admin_log"."user_id", "django_admin_log"."content_type_id", "django_admin_log"."object_id", "django_admin_log"."object_repr", "django_admin_log"."action_flag", "django_admin_log"."change_message", "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined", "django_content_type"."id", "django_content_type"."app_label", "django_content_type"."model" FROM "django_admin_log" INNER JOIN "auth_user" ON ("django_admin_log"."user_id" = "auth_user"."id") LEFT OUTER JOIN "django_content_type" ON ("django_admin_log"."content_type_id" = "django_content_type"."id") WHERE "django_admin_log"."user_id" = 1 ORDER BY "django_admin_log"."action_time" DESC LIMIT 10
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:28.582478+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.044272+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "books_author"."id", "books_author"."name" FROM "books_author"
----
SELECT COUNT(*) AS "__count" FROM "books_book"
----
SELECT COUNT(*) AS "__count" FROM "books_book"
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published", "books_author"."id", "books_author"."name" FROM "books_book" INNER JOIN "books_author" ON ("books_book"."author_id" = "books_author"."id") ORDER BY "books_book"."id" DESC
----
SELECT MIN("books_book"."published") AS "first", MAX("books_book"."published") AS "last" FROM "books_book"
----
SELECT DISTINCT DATE_TRUNC('day', "books_book"."published" AT TIME ZONE 'Europe/Berlin') AS "datetimefield" FROM "books_book" WHERE "books_book"."published" IS NOT NULL ORDER BY 1 ASC
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.492377+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "books_author"."id", "books_author"."name" FROM "books_author"
----
SELECT COUNT(*) AS "__count" FROM "books_book" WHERE UPPER("books_book"."title"::text) LIKE UPPER('%b1%')
----
SELECT COUNT(*) AS "__count" FROM "books_book"
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published", "books_author"."id", "books_author"."name" FROM "books_book" INNER JOIN "books_author" ON ("books_book"."author_id" = "books_author"."id") WHERE UPPER("books_book"."title"::text) LIKE UPPER('%b1%') ORDER BY "books_book"."id" DESC
----
SELECT MIN("books_book"."published") AS "first", MAX("books_book"."published") AS "last" FROM "books_book" WHERE UPPER("books_book"."title"::text) LIKE UPPER('%b1%')
----
SELECT DISTINCT DATE_TRUNC('day', "books_book"."published" AT TIME ZONE 'Europe/Berlin') AS "datetimefield" FROM "books_book" WHERE (UPPER("books_book"."title"::text) LIKE UPPER('%b1%') AND "books_book"."published" IS NOT NULL) ORDER BY 1 ASC
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.566370+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "books_author"."id", "books_author"."name" FROM "books_author"
----
SELECT COUNT(*) AS "__count" FROM "books_book" WHERE ("books_book"."published" >= '2024-01-01 00:00:00+01:00'::timestamptz AND "books_book"."published" < '2025-01-01 00:00:00+01:00'::timestamptz)
----
SELECT COUNT(*) AS "__count" FROM "books_book"
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published", "books_author"."id", "books_author"."name" FROM "books_book" INNER JOIN "books_author" ON ("books_book"."author_id" = "books_author"."id") WHERE ("books_book"."published" >= '2024-01-01 00:00:00+01:00'::timestamptz AND "books_book"."published" < '2025-01-01 00:00:00+01:00'::timestamptz) ORDER BY "books_book"."id" DESC
----
SELECT DISTINCT DATE_TRUNC('month', "books_book"."published" AT TIME ZONE 'Europe/Berlin') AS "datetimefield" FROM "books_book" WHERE ("books_book"."published" >= '2024-01-01 00:00:00+01:00'::timestamptz AND "books_book"."published" < '2025-01-01 00:00:00+01:00'::timestamptz AND "books_book"."published" IS NOT NULL) ORDER BY 1 ASC
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.671042+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published" FROM "books_book" WHERE "books_book"."id" = 1 LIMIT 21
----
SELECT "django_content_type"."id", "django_content_type"."app_label", "django_content_type"."model" FROM "django_content_type" WHERE ("django_content_type"."app_label" = 'books' AND "django_content_type"."model" = 'book') LIMIT 21
----
DECLARE "_django_curs_140342962170752_sync_1" NO SCROLL CURSOR WITH HOLD FOR SELECT "books_author"."id", "books_author"."name" FROM "books_author"
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.782719+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
DECLARE "_django_curs_140342962170752_sync_2" NO SCROLL CURSOR WITH HOLD FOR SELECT "books_author"."id", "books_author"."name" FROM "books_author"
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.871590+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published" FROM "books_book" WHERE "books_book"."id" = 1 LIMIT 21
----
SELECT COUNT(*) AS "__count" FROM "django_admin_log" WHERE ("django_admin_log"."content_type_id" = 8 AND "django_admin_log"."object_id" = '1')
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:29.934314+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "auth_group"."id", "auth_group"."name" FROM "auth_group" INNER JOIN "auth_user_groups" ON ("auth_group"."id" = "auth_user_groups"."group_id") WHERE "auth_user_groups"."user_id" = 1
----
SELECT "auth_permission"."id", "auth_permission"."name", "auth_permission"."content_type_id", "auth_permission"."codename" FROM "auth_permission" INNER JOIN "auth_user_user_permissions" ON ("auth_permission"."id" = "auth_user_user_permissions"."permission_id") INNER JOIN "django_content_type" ON ("auth_permission"."content_type_id" = "django_content_type"."id") WHERE "auth_user_user_permissions"."user_id" = 1 ORDER BY "django_content_type"."app_label" ASC, "django_content_type"."model" ASC, "auth_permission"."codename" ASC
----
SELECT "django_content_type"."id", "django_content_type"."app_label", "django_content_type"."model" FROM "django_content_type" WHERE ("django_content_type"."app_label" = 'auth' AND "django_content_type"."model" = 'user') LIMIT 21
----
DECLARE "_django_curs_140342962170752_sync_3" NO SCROLL CURSOR WITH HOLD FOR SELECT "auth_group"."id", "auth_group"."name" FROM "auth_group" ORDER BY "auth_group"."name" ASC
----
DECLARE "_django_curs_140342962170752_sync_4" NO SCROLL CURSOR WITH HOLD FOR SELECT "auth_permission"."id", "auth_permission"."name", "auth_permission"."content_type_id", "auth_permission"."codename", "django_content_type"."id", "django_content_type"."app_label", "django_content_type"."model" FROM "auth_permission" INNER JOIN "django_content_type" ON ("auth_permission"."content_type_id" = "django_content_type"."id") ORDER BY "django_content_type"."app_label" ASC, "django_content_type"."model" ASC, "auth_permission"."codename" ASC
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:30.201176+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "auth_group"."id", "auth_group"."name" FROM "auth_group" ORDER BY "auth_group"."name" ASC
----
SELECT COUNT(*) AS "__count" FROM "auth_user"
----
SELECT COUNT(*) AS "__count" FROM "auth_user"
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" ORDER BY "auth_user"."username" ASC
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:30.278962+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
SELECT "books_author"."id", "books_author"."name" FROM "books_author" WHERE "books_author"."id" = 1 LIMIT 21
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published", "books_author"."id", "books_author"."name" FROM "books_book" INNER JOIN "books_author" ON ("books_book"."author_id" = "books_author"."id") WHERE "books_book"."author_id" IN (1)
----
SELECT "django_session"."session_key", "django_session"."session_data", "django_session"."expire_date" FROM "django_session" WHERE ("django_session"."expire_date" > '2026-11-25 14:00:30.427753+00:00'::timestamptz AND "django_session"."session_key" = 'k4vq8ll6cbm7j7b9s5hzgn3dfuiy6is5') LIMIT 21
----
SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21
----
BEGIN
----
SELECT "books_book"."id", "books_book"."title", "books_book"."author_id", "books_book"."published" FROM "books_book" WHERE "books_book"."id" = 1 LIMIT 21
----
SELECT "books_author"."id", "books_author"."name" FROM "books_author" WHERE "books_author"."id" = 1 LIMIT 21
----
SELECT 1 AS "a" FROM "books_author" WHERE "books_author"."id" = 1 LIMIT 1
----
UPDATE "books_book" SET "title" = 'x', "author_id" = 1, "published" = '2024-03-01 13:00:00+01:00'::timestamptz WHERE "books_book"."id" = 1
----
INSERT INTO "django_admin_log" ("action_time", "user_id", "content_type_id", "object_id", "object_repr", "action_flag", "change_message") VALUES ('2026-11-25 14:00:30.536069+00:00'::timestamptz, 1, 8, '1', 'Book object (1)', 2, '[{"changed": {"fields": ["Title"]}}]') RETURNING "django_admin_log"."id"
----
COMMIT
