//! Hand-checked lists of built-in functions. Everything not listed is judged by its volatility.

/// STABLE built-ins whose result depends only on their arguments, on settings (all of which are in
/// the key of an answer) and on schema objects (whose change starts a new catalog epoch).
///
/// STABLE itself promises too little: `now()`, `current_setting()` and `pg_backend_pid()` are STABLE.
/// Not on the list although tempting: `json_populate_record` and its like (they turn stored text into
/// dates, and stored text may say `now`), `enum_range` (reads a catalog), `timetz` (uses today's
/// offset from UTC), `version`.
const STABLE_ALLOWED: &[&str] = &[
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "convert",
    "convert_from",
    "convert_to",
    "date",
    "date_add",
    "date_part",
    "date_subtract",
    "date_trunc",
    "extract",
    "format",
    "generate_series",
    "json_agg",
    "json_agg_strict",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "json_object_agg_strict",
    "json_object_agg_unique",
    "json_object_agg_unique_strict",
    "json_to_tsvector",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "jsonb_object_agg_strict",
    "jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict",
    "jsonb_path_exists_tz",
    "jsonb_path_match_tz",
    "jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz",
    "jsonb_path_query_tz",
    "jsonb_to_tsvector",
    "length",
    "make_timestamptz",
    "money",
    "numeric",
    "overlaps",
    "phraseto_tsquery",
    "plainto_tsquery",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "time",
    "timestamp",
    "timestamptz",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "ts_headline",
    "websearch_to_tsquery",
    "xml_is_well_formed",
];

/// Built-ins that are declared IMMUTABLE but answer from the server's state.
const IMMUTABLE_REFUSED: &[&str] = &[
    "pg_partition_root",
    "pg_visible_in_snapshot",
    "pg_walfile_name",
    "pg_walfile_name_offset",
    "satisfies_hash_partition",
    "txid_visible_in_snapshot",
];

/// VOLATILE built-ins that change no table a cached answer could depend on and no setting.
///
/// A volatile built-in that is not listed counts as a write to everything.
const VOLATILE_HARMLESS: &[&str] = &[
    "bernoulli",
    "clock_timestamp",
    "current_query",
    "currtid2",
    "currval",
    "gen_random_uuid",
    "lastval",
    "nextval",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_advisory_unlock",
    "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared",
    "pg_advisory_xact_lock",
    "pg_advisory_xact_lock_shared",
    "pg_backup_start",
    "pg_backup_stop",
    "pg_blocking_pids",
    "pg_cancel_backend",
    "pg_collation_actual_version",
    "pg_control_checkpoint",
    "pg_control_init",
    "pg_control_recovery",
    "pg_control_system",
    "pg_copy_logical_replication_slot",
    "pg_copy_physical_replication_slot",
    "pg_create_logical_replication_slot",
    "pg_create_physical_replication_slot",
    "pg_create_restore_point",
    "pg_current_logfile",
    "pg_current_wal_flush_lsn",
    "pg_current_wal_insert_lsn",
    "pg_current_wal_lsn",
    "pg_database_collation_actual_version",
    "pg_database_size",
    "pg_drop_replication_slot",
    "pg_export_snapshot",
    "pg_get_backend_memory_contexts",
    "pg_get_multixact_members",
    "pg_get_shmem_allocations",
    "pg_get_wal_replay_pause_state",
    "pg_get_wal_resource_managers",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_indexes_size",
    "pg_is_in_backup",
    "pg_is_in_recovery",
    "pg_is_wal_replay_paused",
    "pg_isolation_test_session_is_blocked",
    "pg_jit_available",
    "pg_last_committed_xact",
    "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn",
    "pg_last_xact_replay_timestamp",
    "pg_lock_status",
    "pg_log_backend_memory_contexts",
    "pg_logical_emit_message",
    "pg_logical_slot_get_binary_changes",
    "pg_logical_slot_get_changes",
    "pg_logical_slot_peek_binary_changes",
    "pg_logical_slot_peek_changes",
    "pg_ls_archive_statusdir",
    "pg_ls_dir",
    "pg_ls_logdir",
    "pg_ls_logicalmapdir",
    "pg_ls_logicalsnapdir",
    "pg_ls_replslotdir",
    "pg_ls_tmpdir",
    "pg_ls_waldir",
    "pg_notification_queue_usage",
    "pg_notify",
    "pg_partition_ancestors",
    "pg_partition_tree",
    "pg_prepared_xact",
    "pg_read_binary_file",
    "pg_read_file",
    "pg_relation_size",
    "pg_replication_origin_session_reset",
    "pg_replication_origin_session_setup",
    "pg_replication_slot_advance",
    "pg_rotate_logfile",
    "pg_safe_snapshot_blocking_pids",
    "pg_sequence_last_value",
    "pg_show_all_file_settings",
    "pg_show_replication_origin_status",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_stat_clear_snapshot",
    "pg_stat_file",
    "pg_stat_force_next_flush",
    "pg_stat_get_recovery_prefetch",
    "pg_stat_get_xact_blocks_fetched",
    "pg_stat_get_xact_blocks_hit",
    "pg_stat_get_xact_function_calls",
    "pg_stat_get_xact_function_self_time",
    "pg_stat_get_xact_function_total_time",
    "pg_stat_get_xact_numscans",
    "pg_stat_get_xact_tuples_deleted",
    "pg_stat_get_xact_tuples_fetched",
    "pg_stat_get_xact_tuples_hot_updated",
    "pg_stat_get_xact_tuples_inserted",
    "pg_stat_get_xact_tuples_newpage_updated",
    "pg_stat_get_xact_tuples_returned",
    "pg_stat_get_xact_tuples_updated",
    "pg_stat_have_stats",
    "pg_stat_reset",
    "pg_stat_reset_replication_slot",
    "pg_stat_reset_shared",
    "pg_stat_reset_single_function_counters",
    "pg_stat_reset_single_table_counters",
    "pg_stat_reset_slru",
    "pg_stat_reset_subscription_stats",
    "pg_switch_wal",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_terminate_backend",
    "pg_total_relation_size",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    "pg_try_advisory_xact_lock",
    "pg_try_advisory_xact_lock_shared",
    "pg_wal_replay_pause",
    "pg_wal_replay_resume",
    "pg_xact_commit_timestamp",
    "pg_xact_commit_timestamp_origin",
    "pg_xact_status",
    "random",
    "random_normal",
    "set_config",
    "setseed",
    "setval",
    "system",
    "timeofday",
    "txid_status",
    "uuidv4",
    "uuidv7",
];

/// Built-ins that run a query or read a table named by their arguments: what that query calls, and
/// so what it changes, is not in the statement's text. Most are declared STABLE.
const RUNS_TEXT: &[&str] = &[
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "query_to_xml",
    "query_to_xml_and_xmlschema",
    "query_to_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "ts_rewrite",
    "ts_stat",
];

/// VOLATILE functions of well-known extensions that change neither tables nor settings.
const EXTENSION_HARMLESS: &[(&str, &[&str])] = &[
    (
        "pg_stat_statements",
        &[
            "pg_stat_statements",
            "pg_stat_statements_info",
            "pg_stat_statements_reset",
        ],
    ),
    ("pg_buffercache", &["pg_buffercache_pages"]),
    ("pg_prewarm", &["pg_prewarm"]),
    (
        "pgcrypto",
        &[
            "gen_random_bytes",
            "gen_random_uuid",
            "gen_salt",
            "pgp_pub_encrypt",
            "pgp_pub_encrypt_bytea",
            "pgp_sym_encrypt",
            "pgp_sym_encrypt_bytea",
        ],
    ),
    (
        "uuid-ossp",
        &["uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4"],
    ),
];

/// Names assumed to be the built-ins while no catalog is loaded, besides those on the lists above.
///
/// Only what a session may have changed hangs on this (nothing is cacheable without a catalog, and
/// a query counts as a write to everything): a session that starts with `SELECT count(*)` before the
/// catalog is there must not be pinned to its connection for good.
const COMMON: &[&str] = &[
    "abs",
    "array_agg",
    "array_length",
    "avg",
    "bool_and",
    "bool_or",
    "btrim",
    "cardinality",
    "ceil",
    "ceiling",
    "char_length",
    "count",
    "current_database",
    "current_schema",
    "current_schemas",
    "current_setting",
    "dense_rank",
    "encode",
    "first_value",
    "floor",
    "format_type",
    "greatest",
    "has_schema_privilege",
    "has_table_privilege",
    "lag",
    "last_value",
    "lead",
    "least",
    "left",
    "lower",
    "ltrim",
    "max",
    "md5",
    "min",
    "now",
    "obj_description",
    "pg_backend_pid",
    "pg_encoding_to_char",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_indexdef",
    "pg_get_serial_sequence",
    "pg_get_userbyid",
    "pg_get_viewdef",
    "pg_table_is_visible",
    "pg_type_is_visible",
    "pg_typeof",
    "position",
    "rank",
    "regexp_replace",
    "replace",
    "right",
    "round",
    "row_number",
    "rtrim",
    "split_part",
    "statement_timestamp",
    "string_agg",
    "string_to_array",
    "strpos",
    "substr",
    "substring",
    "sum",
    "to_regclass",
    "transaction_timestamp",
    "trunc",
    "txid_current",
    "unnest",
    "upper",
    "version",
];

/// What a built-in does to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionEffect {
    AdvisoryLock,
    AdvisoryUnlockAll,
    ReadSequence,
    /// Changes session state that has no SET.
    Unknown,
    None,
}

/// Whether a built-in that is STABLE in some overload is safe when called with `arguments`.
pub(super) fn stable_is_allowed(name: &str, arguments: usize) -> bool {
    // With one argument, age() counts from today.
    STABLE_ALLOWED.binary_search(&name).is_ok() || (name == "age" && arguments == 2)
}

/// Whether a built-in must not be trusted although it is IMMUTABLE.
pub(super) fn immutable_is_refused(name: &str) -> bool {
    IMMUTABLE_REFUSED.binary_search(&name).is_ok()
}

/// Whether a volatile built-in leaves tables and settings alone.
pub(super) fn volatile_is_harmless(name: &str) -> bool {
    VOLATILE_HARMLESS.binary_search(&name).is_ok()
}

/// Whether a built-in, whatever its volatility, runs SQL named by its arguments.
pub(super) fn runs_text(name: &str) -> bool {
    RUNS_TEXT.binary_search(&name).is_ok()
}

/// Whether a built-in that is not harmless may change settings, as it may run any SQL. Large objects
/// are data of their own, which no cacheable statement reads.
pub(super) fn may_change_settings(name: &str) -> bool {
    !name.starts_with("lo_") && name != "loread" && name != "lowrite"
}

/// Whether a volatile function of an extension leaves tables and settings alone.
pub(super) fn extension_is_harmless(extension: &str, name: &str) -> bool {
    EXTENSION_HARMLESS
        .iter()
        .any(|(owner, names)| *owner == extension && names.contains(&name))
}

/// Whether `name` is taken for the built-in of that name while no catalog is loaded.
pub(super) fn assumed_builtin(name: &str) -> bool {
    COMMON.binary_search(&name).is_ok()
        || STABLE_ALLOWED.binary_search(&name).is_ok()
        || volatile_is_harmless(name)
}

/// What a built-in does to its session.
pub(super) fn session_effect(name: &str) -> SessionEffect {
    match name {
        "pg_advisory_lock"
        | "pg_advisory_lock_shared"
        | "pg_try_advisory_lock"
        | "pg_try_advisory_lock_shared" => SessionEffect::AdvisoryLock,
        "currval" | "lastval" => SessionEffect::ReadSequence,
        "pg_advisory_unlock_all" => SessionEffect::AdvisoryUnlockAll,
        // A backup belongs to its session, as does a replication origin and the random seed.
        "pg_backup_start"
        | "pg_replication_origin_session_reset"
        | "pg_replication_origin_session_setup"
        | "set_config"
        | "setseed" => SessionEffect::Unknown,
        _ => SessionEffect::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_for_binary_search() {
        for list in [
            STABLE_ALLOWED,
            IMMUTABLE_REFUSED,
            VOLATILE_HARMLESS,
            RUNS_TEXT,
            COMMON,
        ] {
            assert!(list.is_sorted_by(|a, b| a < b), "{list:?}");
        }
    }
}
