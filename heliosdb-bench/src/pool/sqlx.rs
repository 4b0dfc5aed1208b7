//! What sqlx's pool has to be told to pool anything: a database that has connections and nothing else.
//!
//! Rows, columns, statements and values there are none, so their types have no value.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use sqlx_core::Either;
use sqlx_core::arguments::{Arguments, IntoArguments};
use sqlx_core::column::{Column, ColumnIndex};
use sqlx_core::connection::{ConnectOptions, Connection};
use sqlx_core::database::Database;
use sqlx_core::encode::Encode;
use sqlx_core::error::{BoxDynError, Error};
use sqlx_core::impl_statement_query;
use sqlx_core::pool::{Pool, PoolConnection, PoolOptions};
use sqlx_core::row::Row;
use sqlx_core::sql_str::SqlStr;
use sqlx_core::statement::Statement;
use sqlx_core::transaction::{Transaction, TransactionManager};
use sqlx_core::type_info::TypeInfo;
use sqlx_core::types::Type;
use sqlx_core::url::Url;
use sqlx_core::value::{Value, ValueRef};

/// How a connection is opened.
pub(super) trait Dial: fmt::Debug + Clone + Send + Sync + 'static {
    type Stream: Send + 'static;

    fn dial(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

/// A pool of what a dial opens.
pub(super) type SqlxPool<D> = Pool<Dummy<D>>;

pub(super) type SqlxLease<D> = PoolConnection<Dummy<D>>;

/// A pool that has not connected yet, of `size` connections, with all else as by default but how long an acquire may take.
pub(super) fn pool<D: Dial>(dial: D, size: usize, acquire_timeout: Duration) -> SqlxPool<D> {
    PoolOptions::new()
        .max_connections(u32::try_from(size).expect("a small number"))
        .acquire_timeout(acquire_timeout)
        .connect_lazy_with(Options(dial))
}

#[derive(Debug)]
pub(super) struct Dummy<D>(PhantomData<fn() -> D>);

/// A connection.
pub(super) struct Held<D: Dial> {
    _stream: D::Stream,
}

#[derive(Debug, Clone)]
pub(super) struct Options<D>(D);

/// What there is none of.
pub(super) struct Never<D>(Infallible, PhantomData<fn() -> D>);

/// No arguments: the only thing of a statement that has to be possible.
pub(super) struct NoArguments<D>(PhantomData<fn() -> D>);

/// What came of a statement.
#[derive(Default)]
pub(super) struct Nothing;

impl<D: Dial> Database for Dummy<D> {
    type Connection = Held<D>;
    type TransactionManager = Never<D>;
    type Row = Never<D>;
    type QueryResult = Nothing;
    type Column = Never<D>;
    type TypeInfo = Never<D>;
    type Value = Never<D>;
    type ValueRef<'r> = Never<D>;
    type Arguments = NoArguments<D>;
    type ArgumentBuffer = ();
    type Statement = Never<D>;

    const NAME: &'static str = "dummy";
    const URL_SCHEMES: &'static [&'static str] = &[];
}

impl<D: Dial> Connection for Held<D> {
    type Database = Dummy<D>;
    type Options = Options<D>;

    async fn close(self) -> Result<(), Error> {
        Ok(())
    }

    async fn close_hard(self) -> Result<(), Error> {
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn begin(&mut self) -> Result<Transaction<'_, Dummy<D>>, Error> {
        Transaction::begin(self, None).await
    }

    fn shrink_buffers(&mut self) {}

    async fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn should_flush(&self) -> bool {
        false
    }
}

impl<D: Dial> ConnectOptions for Options<D> {
    type Connection = Held<D>;

    fn from_url(_: &Url) -> Result<Self, Error> {
        Err(Error::Configuration("there are no URLs here".into()))
    }

    async fn connect(&self) -> Result<Held<D>, Error> {
        // As sqlx's own drivers report it.
        let stream = self.0.dial().await.map_err(Error::Io)?;
        Ok(Held { _stream: stream })
    }

    fn log_statements(self, _: log::LevelFilter) -> Self {
        self
    }

    fn log_slow_statements(self, _: log::LevelFilter, _: Duration) -> Self {
        self
    }
}

impl<D> FromStr for Options<D> {
    type Err = Error;

    fn from_str(_: &str) -> Result<Self, Error> {
        Err(Error::Configuration("there are no URLs here".into()))
    }
}

impl<D: Dial> TransactionManager for Never<D> {
    type Database = Dummy<D>;

    async fn begin(_: &mut Held<D>, _: Option<SqlStr>) -> Result<(), Error> {
        Ok(())
    }

    async fn commit(_: &mut Held<D>) -> Result<(), Error> {
        Ok(())
    }

    async fn rollback(_: &mut Held<D>) -> Result<(), Error> {
        Ok(())
    }

    fn start_rollback(_: &mut Held<D>) {}

    fn get_transaction_depth(_: &Held<D>) -> usize {
        0
    }
}

impl<D: Dial> Row for Never<D> {
    type Database = Dummy<D>;

    fn columns(&self) -> &[Self] {
        match self.0 {}
    }

    fn try_get_raw<I: ColumnIndex<Self>>(&self, _: I) -> Result<Self, Error> {
        match self.0 {}
    }
}

impl<D: Dial> Column for Never<D> {
    type Database = Dummy<D>;

    fn ordinal(&self) -> usize {
        match self.0 {}
    }

    fn name(&self) -> &str {
        match self.0 {}
    }

    fn type_info(&self) -> &Self {
        match self.0 {}
    }
}

impl<D: Dial> TypeInfo for Never<D> {
    fn is_null(&self) -> bool {
        match self.0 {}
    }

    fn name(&self) -> &str {
        match self.0 {}
    }
}

impl<D: Dial> Value for Never<D> {
    type Database = Dummy<D>;

    fn as_ref(&self) -> Self {
        match self.0 {}
    }

    fn type_info(&self) -> Cow<'_, Self> {
        match self.0 {}
    }

    fn is_null(&self) -> bool {
        match self.0 {}
    }
}

impl<D: Dial> ValueRef<'_> for Never<D> {
    type Database = Dummy<D>;

    fn to_owned(&self) -> Self {
        match self.0 {}
    }

    fn type_info(&self) -> Cow<'_, Self> {
        match self.0 {}
    }

    fn is_null(&self) -> bool {
        match self.0 {}
    }
}

impl<D: Dial> Statement for Never<D> {
    type Database = Dummy<D>;

    fn into_sql(self) -> SqlStr {
        match self.0 {}
    }

    fn sql(&self) -> &SqlStr {
        match self.0 {}
    }

    fn parameters(&self) -> Option<Either<&[Self], usize>> {
        match self.0 {}
    }

    fn columns(&self) -> &[Self] {
        match self.0 {}
    }

    impl_statement_query!(NoArguments<D>);
}

impl<D: Dial> Arguments for NoArguments<D> {
    type Database = Dummy<D>;

    fn reserve(&mut self, _: usize, _: usize) {}

    fn add<'t, T>(&mut self, _: T) -> Result<(), BoxDynError>
    where
        T: Encode<'t, Dummy<D>> + Type<Dummy<D>>,
    {
        Ok(())
    }

    fn len(&self) -> usize {
        0
    }
}

impl<D: Dial> IntoArguments<Dummy<D>> for NoArguments<D> {
    fn into_arguments(self) -> Self {
        self
    }
}

impl<D> Default for NoArguments<D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl Extend<Self> for Nothing {
    fn extend<I: IntoIterator<Item = Self>>(&mut self, _: I) {}
}

impl<D> Clone for Never<D> {
    fn clone(&self) -> Self {
        match self.0 {}
    }
}

impl<D> PartialEq for Never<D> {
    fn eq(&self, _: &Self) -> bool {
        match self.0 {}
    }
}

impl<D> fmt::Debug for Never<D> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

impl<D> fmt::Display for Never<D> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}
