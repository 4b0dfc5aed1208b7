//! Answers as text.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use heliosdb_network::Reply;
use heliosdb_network::client::Row;
use heliosdb_network::protocol::{AnswerSource, Facts};
use serde_json::value::RawValue;

/// Types whose text is a JSON number, but for `NaN` and infinities: int8, int2, int4, oid, float4, float8, numeric.
const NUMBERS: [u32; 7] = [20, 21, 23, 26, 700, 701, 1700];
const BOOL: u32 = 16;
const JSON: [u32; 2] = [114, 3802];

/// Rows for people, and what is known of the answer.
pub(super) fn table(out: &mut impl Write, reply: &Reply, took: Duration) -> anyhow::Result<()> {
    let columns = reply.columns();
    if !columns.is_empty() {
        let mut table = Table::new();
        table
            .load_preset(UTF8_FULL_CONDENSED)
            .set_header(columns.iter().map(|column| &column.name));
        for row in reply.rows() {
            table.add_row(
                values(&row, columns.len())?
                    .iter()
                    .map(|value| value.unwrap_or("")),
            );
        }
        for (number, column) in columns.iter().enumerate() {
            if NUMBERS.contains(&column.type_oid)
                && let Some(shown) = table.column_mut(number)
            {
                shown.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(out, "{table}")?;
    }
    let took = took.as_secs_f64() * 1000.0;
    writeln!(
        out,
        "{}, {}, {took:.1} ms",
        reply.tag(),
        source(reply.facts())
    )?;
    Ok(())
}

fn source(facts: &Facts) -> String {
    match facts.source {
        AnswerSource::Hit | AnswerSource::Near => format!("from memory, {} ms old", facts.age_ms),
        AnswerSource::Miss => "from the server, to be kept".to_owned(),
        AnswerSource::Server => "from the server".to_owned(),
    }
}

/// Rows for spreadsheets. NULL is an empty field, as an empty text is.
pub(super) fn csv(out: &mut impl Write, reply: &Reply) -> anyhow::Result<()> {
    let columns = reply.columns();
    if columns.is_empty() {
        return Ok(());
    }
    let mut writer = csv::WriterBuilder::new().from_writer(out);
    writer.write_record(columns.iter().map(|column| &column.name))?;
    for row in reply.rows() {
        let values = values(&row, columns.len())?;
        writer.write_record(values.iter().map(|value| value.unwrap_or("")))?;
    }
    Ok(writer.flush()?)
}

/// Rows for programs: an object a line.
pub(super) fn json(out: &mut impl Write, reply: &Reply) -> anyhow::Result<()> {
    let columns = reply.columns();
    for row in reply.rows() {
        let values = values(&row, columns.len())?;
        out.write_all(b"{")?;
        for (number, (column, value)) in columns.iter().zip(values).enumerate() {
            if number > 0 {
                out.write_all(b",")?;
            }
            serde_json::to_writer(&mut *out, &column.name)?;
            out.write_all(b":")?;
            put_json(out, column.type_oid, value)?;
        }
        out.write_all(b"}\n")?;
    }
    Ok(())
}

fn put_json(out: &mut impl Write, type_oid: u32, value: Option<&str>) -> io::Result<()> {
    let Some(value) = value else {
        return out.write_all(b"null");
    };
    let raw = match type_oid {
        BOOL => Some(if value == "t" { "true" } else { "false" }),
        // `NaN` and `Infinity` are no JSON, and go as text.
        oid if NUMBERS.contains(&oid) || JSON.contains(&oid) => {
            let read = serde_json::from_str::<&RawValue>(value);
            read.is_ok().then_some(value)
        }
        _ => None,
    };
    match raw {
        Some(raw) => out.write_all(raw.as_bytes()),
        None => Ok(serde_json::to_writer(out, value)?),
    }
}

fn values<'a>(row: &Row<'a>, columns: usize) -> anyhow::Result<Vec<Option<&'a str>>> {
    let values = (0..columns).map(|column| row.text(column));
    Ok(values.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(type_oid: u32, value: Option<&str>) -> String {
        let mut out = Vec::new();
        put_json(&mut out, type_oid, value).expect("written");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn values_are_json_of_their_type() {
        for (oid, value, json) in [
            (23, Some("-7"), "-7"),
            (1700, Some("1e400"), "1e400"),
            (701, Some("NaN"), "\"NaN\""),
            (701, Some("-Infinity"), "\"-Infinity\""),
            (16, Some("t"), "true"),
            (16, Some("f"), "false"),
            (3802, Some("{\"a\": [1]}"), "{\"a\": [1]}"),
            (25, Some("7"), "\"7\""),
            (25, Some("a\"\n"), "\"a\\\"\\n\""),
            (25, None, "null"),
        ] {
            assert_eq!(json_of(oid, value), json);
        }
    }
}
