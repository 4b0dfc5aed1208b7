//! A client's connection, and the ways to run a statement over it.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::Severity;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls, Row, SimpleQueryMessage, Statement};

use crate::history::Level;

/// How a statement is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Prepared, run and closed, with binary results.
    Extended,
    /// Prepared once for the connection, with binary results.
    Prepared,
    /// A text with its constants, and text results.
    Simple,
    /// Parse, Bind and Execute in one message, with binary results.
    Typed,
}

impl Form {
    pub(crate) const ALL: [Self; 4] = [Self::Extended, Self::Prepared, Self::Simple, Self::Typed];
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Param {
    Big(i64),
    Key(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Int(i64),
    List(Vec<i64>),
    Null,
}

impl Value {
    /// A count or a version.
    pub(crate) fn as_count(&self) -> Option<u64> {
        match self {
            Self::Int(value) => u64::try_from(*value).ok(),
            Self::List(_) | Self::Null => None,
        }
    }
}

/// Why a statement has no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection is gone: nobody knows whether it was run.
    Lost,
    /// The server did not run it, and says so.
    Refused(String),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let refused = error.as_db_error().filter(|error| {
            let code = error.code().code();
            // What these say is that nobody knows.
            let is_lost = code.starts_with("08") || code.starts_with("57P") || code == "XX000";
            error.parsed_severity() == Some(Severity::Error) && !is_lost
        });
        match refused {
            Some(error) => Self::Refused(format!("{}: {}", error.code().code(), error.message())),
            None => Self::Lost,
        }
    }
}

/// Dropping it cuts the connection, whatever is under way.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    connection: JoinHandle<()>,
    prepared: HashMap<String, Statement>,
}

impl Session {
    /// Connects, and asks for the level.
    pub(crate) async fn connect(
        port: u16,
        level: Level,
        max_age: Duration,
    ) -> Result<Self, tokio_postgres::Error> {
        let config =
            format!("host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=10");
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        let connection = tokio::spawn(async move {
            // That it was lost is told to whoever waits for an answer.
            let _ = connection.await;
        });
        let session = Self {
            client,
            connection,
            prepared: HashMap::new(),
        };
        let settings = match level {
            Level::Bounded => format!("SET helios.cache TO 'ttl={}ms'", max_age.as_millis()),
            Level::Strict => "SET helios.cache TO 'strict'".to_owned(),
            Level::Server | Level::Session => return Ok(session),
        };
        session.client.batch_execute(&settings).await?;
        Ok(session)
    }

    /// Runs one statement, or by [`Form::Simple`] several.
    pub(crate) async fn rows(
        &mut self,
        form: Form,
        sql: &str,
        params: &[Param],
    ) -> Result<Vec<Vec<Value>>, Failure> {
        tokio::time::timeout(PATIENCE, self.run(form, sql, params))
            .await
            .unwrap_or(Err(Failure::Lost))
    }

    async fn run(
        &mut self,
        form: Form,
        sql: &str,
        params: &[Param],
    ) -> Result<Vec<Vec<Value>>, Failure> {
        if form == Form::Simple {
            let messages = self
                .client
                .simple_query(&with_constants(sql, params))
                .await?;
            return Ok(messages.iter().filter_map(text_row).collect());
        }
        let owned: Vec<(Box<dyn ToSql + Sync + Send>, Type)> =
            params.iter().map(parameter).collect();
        let typed: Vec<(&(dyn ToSql + Sync), Type)> = owned
            .iter()
            .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
            .collect();
        let values: Vec<&(dyn ToSql + Sync)> = typed.iter().map(|(value, _)| *value).collect();
        let rows = match form {
            Form::Prepared => {
                let statement = match self.prepared.get(sql) {
                    Some(statement) => statement.clone(),
                    None => {
                        let statement = self.client.prepare(sql).await?;
                        self.prepared.insert(sql.to_owned(), statement.clone());
                        statement
                    }
                };
                self.client.query(&statement, &values).await?
            }
            Form::Typed => self.client.query_typed(sql, &typed).await?,
            Form::Extended | Form::Simple => self.client.query(sql, &values).await?,
        };
        Ok(rows.iter().map(binary_row).collect())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn parameter(param: &Param) -> (Box<dyn ToSql + Sync + Send>, Type) {
    match param {
        Param::Big(value) => (Box::new(*value), Type::INT8),
        Param::Key(value) => (Box::new(key(*value)), Type::INT4),
    }
}

fn key(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn with_constants(sql: &str, params: &[Param]) -> String {
    let mut text = sql.to_owned();
    for (place, param) in params.iter().enumerate() {
        let constant = match param {
            Param::Big(value) => value.to_string(),
            Param::Key(value) => value.to_string(),
        };
        text = text.replace(&format!("${}", place + 1), &constant);
    }
    text
}

fn text_row(message: &SimpleQueryMessage) -> Option<Vec<Value>> {
    let SimpleQueryMessage::Row(row) = message else {
        return None;
    };
    let value = |place| match row.get(place) {
        None => Value::Null,
        Some(text) => match text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        {
            Some(items) => Value::List(
                items
                    .split(',')
                    .filter_map(|item| item.parse().ok())
                    .collect(),
            ),
            None => text.parse().map_or(Value::Null, Value::Int),
        },
    };
    Some((0..row.len()).map(value).collect())
}

fn binary_row(row: &Row) -> Vec<Value> {
    let value = |place: usize| {
        let kind = row.columns()[place].type_();
        let int = match *kind {
            Type::INT4 => row
                .try_get::<_, Option<i32>>(place)
                .ok()
                .flatten()
                .map(i64::from),
            Type::INT8 => row.try_get::<_, Option<i64>>(place).ok().flatten(),
            _ => None,
        };
        match (int, kind) {
            (Some(int), _) => Value::Int(int),
            (None, &Type::INT8_ARRAY) => row
                .try_get::<_, Vec<i64>>(place)
                .map_or(Value::Null, Value::List),
            (None, _) => Value::Null,
        }
    };
    (0..row.len()).map(value).collect()
}

/// Nobody waits longer, so that no operation takes longer than the checker remembers.
const PATIENCE: Duration = Duration::from_secs(20);
