//! Rows by primary key: which ones a statement reads or writes, and what tells them apart.
//!
//! A class is shared by texts that differ in literals, and a prepared statement is run with many parameters. So a class
//! does not hold a key's values: it says where they stand ([`RowKey`]), and they are read from the text and the parameters
//! at hand ([`Values`]) when a read is not in the cache, or before a write is sent.
//!
//! Two statements must come to the same slot whenever the server finds their values equal. Hence only types whose
//! equality is that of one canonical form, which is the text that the server prints: integers, `uuid`, and `text` and
//! `varchar` under a deterministic collation. Values are read strictly. What is not certain (white space, other bases,
//! `numeric` parameters) has no canonical form, and the statement then reads the whole table, or writes any row of it.

use smallvec::SmallVec;

use super::skeleton;

/// Which rows of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rows {
    /// Read: the relation as a set. Written: any.
    All,
    /// Read: the row with this key, and an answer without rows says that there is none.
    Found(RowKey),
    /// Those with these keys, if they exist.
    Keys(Box<[RowKey]>),
    /// Written: rows that were not there before, whose keys are not known, and those with these keys.
    New(Box<[RowKey]>),
}

/// Where the values of a primary key stand, in the order of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowKey {
    values: SmallVec<[KeyValue; 1]>,
    /// Written: if the row was there before, the write fails or does nothing.
    pub inserts: bool,
}

impl RowKey {
    pub(super) fn new(values: SmallVec<[KeyValue; 1]>, inserts: bool) -> Self {
        Self { values, inserts }
    }

    /// The key in canonical form. `None` if some value has none.
    #[must_use]
    pub fn encode(&self, values: &Values<'_>) -> Option<EncodedKey> {
        let mut key = EncodedKey::default();
        for value in &self.values {
            if !value.put(values, &mut key)? {
                return None;
            }
        }
        Some(key)
    }

    pub(super) fn weight(&self) -> usize {
        let constants = self.values.iter().map(|value| match &value.source {
            Source::Constant(text) => text.len(),
            Source::Literal { .. } | Source::Parameter { .. } => 0,
        });
        self.values.len() * size_of::<KeyValue>() + constants.sum::<usize>()
    }

    /// Looks again at parameters, once it is known how often each occurs in the statement.
    pub(super) fn settle_parameters(&mut self, is_lone: impl Fn(i32) -> bool) {
        for value in &mut self.values {
            if let Source::Parameter { number, type_, .. } = &mut value.source
                && !is_lone(i32::from(*number))
            {
                *type_ = None;
            }
        }
    }
}

impl Rows {
    pub(super) fn weight(&self) -> usize {
        let all = |keys: &[RowKey]| -> usize {
            keys.iter().map(|key| size_of_val(key) + key.weight()).sum()
        };
        match self {
            Self::All => 0,
            Self::Found(key) => key.weight(),
            Self::Keys(keys) | Self::New(keys) => all(keys),
        }
    }
}

/// A primary key's values, each as the server prints it, in the order of the key's columns. Equal keys are equal here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EncodedKey(SmallVec<[u8; 40]>);

impl EncodedKey {
    /// Appends the next column's value.
    pub fn push(&mut self, value: &str) {
        self.0.extend_from_slice(&value.len().to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
    }

    /// For hashing.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Types of key columns, as far as equality goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `int2`, `int4`, `int8`: equal across the three.
    Integer,
    /// `text` and `varchar`.
    Text,
    Uuid,
}

const INT2: u32 = 21;
const INT4: u32 = 23;
const INT8: u32 = 20;
const TEXT: u32 = 25;
const UUID: u32 = 2950;
const VARCHAR: u32 = 1043;

impl Kind {
    /// Of a type's identifier.
    pub(super) fn of(type_: u32) -> Option<Self> {
        match type_ {
            INT2 | INT4 | INT8 => Some(Self::Integer),
            TEXT | VARCHAR => Some(Self::Text),
            UUID => Some(Self::Uuid),
            _ => None,
        }
    }

    /// The identifier of the built-in type of that name.
    pub(super) fn type_named(name: &str) -> Option<u32> {
        match name {
            "int2" => Some(INT2),
            "int4" => Some(INT4),
            "int8" => Some(INT8),
            "text" => Some(TEXT),
            "uuid" => Some(UUID),
            "varchar" => Some(VARCHAR),
            _ => None,
        }
    }
}

/// One value of a key, and what it is compared with or assigned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyValue {
    pub(super) kind: Kind,
    pub(super) source: Source,
    /// The value is assigned to a `varchar` of that length, which cuts blanks off.
    pub(super) chars_max: Option<u32>,
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In the class itself, in canonical form: no other text has this class.
    Constant(Box<str>),
    /// The n-th literal of the text, from 0, with or without a minus before it.
    Literal { nth: u16, negative: bool },
    /// A parameter, from 1. Its type where its declaration leaves it open: `None` if that can't be told, since it occurs
    /// elsewhere too and may get its type from there.
    Parameter { number: u16, type_: Option<u32> },
}

/// Where a statement's values are to be read from.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Values<'a> {
    /// The statement's text.
    pub text: &'a str,
    /// Its parameters, where these are known.
    pub parameters: Option<Parameters<'a>>,
}

impl<'a> Values<'a> {
    /// Of a text without parameters.
    #[must_use]
    pub fn of_text(text: &'a str) -> Self {
        Self {
            text,
            parameters: None,
        }
    }

    /// Of a text that is run with parameters.
    #[must_use]
    pub fn bound(text: &'a str, parameters: Parameters<'a>) -> Self {
        Self {
            text,
            parameters: Some(parameters),
        }
    }
}

/// What a statement was parsed and bound with.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Parameters<'a> {
    /// As in Parse: a count, and the identifiers of the types; 0 where the server is to choose.
    pub types: &'a [u8],
    /// As in Bind behind the names: formats and values.
    pub bind: &'a [u8],
    /// The server chose types by the catalog that the class was found under.
    pub parsed_under_catalog: bool,
}

impl<'a> Parameters<'a> {
    /// See the fields.
    #[must_use]
    pub fn new(types: &'a [u8], bind: &'a [u8], parsed_under_catalog: bool) -> Self {
        Self {
            types,
            bind,
            parsed_under_catalog,
        }
    }
}

impl KeyValue {
    /// Appends the value to a key. `Some(false)` or `None` if it has no canonical form.
    fn put(&self, values: &Values<'_>, key: &mut EncodedKey) -> Option<bool> {
        let put = |text: &str, key: &mut EncodedKey| {
            let fits = self
                .chars_max
                .is_none_or(|max| text.chars().count() <= max as usize);
            if fits {
                key.push(text);
            }
            Some(fits)
        };
        match &self.source {
            Source::Constant(text) => put(text, key),
            Source::Literal { nth, negative } => {
                let places = skeleton::literals(values.text)?;
                let literal = values.text.get(places.get(usize::from(*nth))?.clone())?;
                put(&self.kind.of_literal(literal, *negative)?, key)
            }
            Source::Parameter { number, type_ } => {
                let parameters = values.parameters?;
                let at = usize::from(*number).checked_sub(1)?;
                let declared = parameters.declared_type(at)?;
                let type_ = match declared {
                    0 if parameters.parsed_under_catalog => (*type_)?,
                    0 => return None,
                    declared => declared,
                };
                if Kind::of(type_) != Some(self.kind) {
                    return None;
                }
                let (is_binary, value) = parameters.value(at)?;
                put(&self.kind.of_parameter(type_, is_binary, value)?, key)
            }
        }
    }
}

impl Parameters<'_> {
    /// 0 if none was declared.
    fn declared_type(&self, at: usize) -> Option<u32> {
        let (_, oids) = self.types.split_first_chunk::<2>()?;
        match oids.as_chunks::<4>().0.get(at) {
            Some(oid) => Some(u32::from_be_bytes(*oid)),
            None => Some(0),
        }
    }

    /// Whether the parameter is in binary format, and its bytes. `None` if it is NULL or not there.
    fn value(&self, at: usize) -> Option<(bool, &[u8])> {
        let (count, rest) = count_of(self.bind)?;
        let (formats, rest) = rest.split_at_checked(2 * count)?;
        let formats = formats.as_chunks::<2>().0;
        let format = match formats {
            [] => 0,
            [all] => u16::from_be_bytes(*all),
            each => u16::from_be_bytes(*each.get(at)?),
        };
        let (count, mut rest) = count_of(rest)?;
        if at >= count || format > 1 {
            return None;
        }
        for _ in 0..at {
            (_, rest) = field(rest)?;
        }
        Some((format == 1, field(rest)?.0?))
    }
}

fn count_of(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*count).into(), rest))
}

/// A value with its length before it, or NULL; and what follows.
fn field(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    match usize::try_from(i32::from_be_bytes(*len)) {
        Ok(len) => {
            let (value, rest) = rest.split_at_checked(len)?;
            Some((Some(value), rest))
        }
        Err(_) => Some((None, rest)),
    }
}

impl Kind {
    /// The canonical form of a literal as it stands in a text that has a skeleton.
    fn of_literal(self, literal: &str, negative: bool) -> Option<String> {
        match literal.strip_prefix('\'') {
            Some(quoted) if !negative => {
                self.of_string(&quoted.strip_suffix('\'')?.replace("''", "'"))
            }
            Some(_) => None,
            None => self.of_number(literal, negative),
        }
    }

    /// The canonical form of a number of the grammar, without its sign.
    pub(super) fn of_number(self, digits: &str, negative: bool) -> Option<String> {
        if self != Self::Integer || !is_digits(digits) {
            return None;
        }
        let magnitude: i128 = digits.parse().ok()?;
        let value = if negative { -magnitude } else { magnitude };
        Some(i64::try_from(value).ok()?.to_string())
    }

    /// The canonical form of a string: the content of a string literal, or a parameter in text format.
    pub(super) fn of_string(self, text: &str) -> Option<String> {
        match self {
            Self::Integer => match text.strip_prefix('-') {
                Some(digits) => self.of_number(digits, true),
                None => self.of_number(text, false),
            },
            Self::Text => Some(text.to_owned()),
            Self::Uuid => {
                let is_canonical = text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => byte.is_ascii_hexdigit(),
                    });
                is_canonical.then(|| text.to_ascii_lowercase())
            }
        }
    }

    fn of_parameter(self, type_: u32, is_binary: bool, value: &[u8]) -> Option<String> {
        if self == Self::Text || !is_binary {
            return self.of_string(std::str::from_utf8(value).ok()?);
        }
        match type_ {
            INT2 => Some(i16::from_be_bytes(value.try_into().ok()?).to_string()),
            INT4 => Some(i32::from_be_bytes(value.try_into().ok()?).to_string()),
            INT8 => Some(i64::from_be_bytes(value.try_into().ok()?).to_string()),
            UUID => Some(printed_uuid(value.try_into().ok()?)),
            _ => None,
        }
    }
}

fn printed_uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// Not so long that reading them takes time.
fn is_digits(text: &str) -> bool {
    (1..=30).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(kind: Kind, number: u16, type_: Option<u32>) -> RowKey {
        let source = Source::Parameter { number, type_ };
        let value = KeyValue {
            kind,
            source,
            chars_max: None,
        };
        RowKey::new(smallvec::smallvec![value], false)
    }

    fn encoded(text: &str) -> Option<EncodedKey> {
        let mut key = EncodedKey::default();
        key.push(text);
        Some(key)
    }

    /// A count and the types.
    fn types(oids: &[u32]) -> Vec<u8> {
        let mut bytes = u16::try_from(oids.len())
            .expect("few")
            .to_be_bytes()
            .to_vec();
        bytes.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
        bytes
    }

    fn bind(formats: &[u16], values: &[Option<&[u8]>]) -> Vec<u8> {
        let count = |n: usize| u16::try_from(n).expect("few").to_be_bytes();
        let mut bytes = count(formats.len()).to_vec();
        bytes.extend(formats.iter().flat_map(|format| format.to_be_bytes()));
        bytes.extend(count(values.len()));
        for value in values {
            match value {
                Some(value) => {
                    bytes.extend(i32::try_from(value.len()).expect("short").to_be_bytes());
                    bytes.extend_from_slice(value);
                }
                None => bytes.extend((-1_i32).to_be_bytes()),
            }
        }
        bytes.extend(count(0));
        bytes
    }

    #[test]
    fn integers_are_read_strictly() {
        let integer = Kind::Integer;
        for (text, canonical) in [
            ("5", "5"),
            ("005", "5"),
            ("-0", "0"),
            ("-07", "-7"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
        ] {
            assert_eq!(
                integer.of_string(text).as_deref(),
                Some(canonical),
                "{text}"
            );
        }
        for text in [
            "",
            "-",
            "+5",
            " 5",
            "5 ",
            "5.0",
            "5e0",
            "0x5",
            "1_0",
            "--5",
            "٥",
            "9223372036854775808",
            "-9223372036854775809",
            "NaN",
        ] {
            assert_eq!(integer.of_string(text), None, "{text}");
        }
        assert_eq!(integer.of_literal("12", true).as_deref(), Some("-12"));
        assert_eq!(integer.of_literal("'-12'", false).as_deref(), Some("-12"));
        assert_eq!(integer.of_literal("'12'", true), None);
        assert_eq!(integer.of_literal("1.0", false), None);
    }

    #[test]
    fn uuids_have_one_form_and_texts_are_as_they_are() {
        let upper = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11";
        let lower = upper.to_ascii_lowercase();
        assert_eq!(Kind::Uuid.of_string(upper).as_ref(), Some(&lower));
        let bytes = 0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11_u128.to_be_bytes();
        assert_eq!(Kind::Uuid.of_parameter(UUID, true, &bytes), Some(lower));
        for text in [
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "",
        ] {
            assert_eq!(Kind::Uuid.of_string(text), None, "{text}");
        }
        assert_eq!(
            Kind::Text.of_literal("'it''s '", false).as_deref(),
            Some("it's ")
        );
        assert_eq!(Kind::Text.of_literal("5", false), None);
        assert_eq!(Kind::Text.of_parameter(TEXT, true, b"\xff"), None);
    }

    #[test]
    fn parameters_are_read_by_their_declared_types_and_formats() {
        let read = |key: &RowKey, oids: &[u32], bind: &[u8], current| {
            let types = types(oids);
            let parameters = Parameters {
                types: &types,
                bind,
                parsed_under_catalog: current,
            };
            key.encode(&Values {
                text: "",
                parameters: Some(parameters),
            })
        };
        let key = parameter(Kind::Integer, 2, Some(INT4));
        let textual = bind(&[], &[None, Some(b"007")]);
        let binary = bind(&[0, 1], &[Some(b"x"), Some(&7_i32.to_be_bytes())]);
        let wide = bind(&[1], &[Some(b"x"), Some(&7_i64.to_be_bytes())]);
        for bind in [&textual, &binary] {
            assert_eq!(read(&key, &[], bind, true), encoded("7"));
            assert_eq!(read(&key, &[0, INT4], bind, false), encoded("7"));
            assert_eq!(
                read(&key, &[], bind, false),
                None,
                "parsed under another catalog"
            );
            for other in [1700, 701, TEXT, 705, UUID] {
                assert_eq!(
                    read(&key, &[0, other], bind, true),
                    None,
                    "declared {other}"
                );
            }
        }
        assert_eq!(read(&key, &[], &wide, true), None, "not four bytes");
        assert_eq!(read(&key, &[0, INT8], &wide, true), encoded("7"));
        assert_eq!(
            read(&key, &[], &bind(&[], &[Some(b"1"), None]), true),
            None,
            "NULL"
        );
        assert_eq!(
            read(&key, &[], &bind(&[], &[Some(b"1")]), true),
            None,
            "missing"
        );
        assert_eq!(
            read(&key, &[], &textual[..textual.len() - 4], true),
            None,
            "cut off"
        );
        assert_eq!(
            read(&key, &[], &bind(&[2], &[None, Some(b"7")]), true),
            None,
            "no such format"
        );
        let shared = parameter(Kind::Integer, 1, None);
        let one = bind(&[], &[Some(b"1")]);
        assert_eq!(
            read(&shared, &[], &one, true),
            None,
            "typed by something else"
        );
        assert_eq!(read(&shared, &[INT2], &one, true), encoded("1"));
        assert_eq!(key.encode(&Values::of_text("")), None, "nothing bound");
    }

    #[test]
    fn what_an_assignment_would_cut_off_has_no_canonical_form() {
        let value = |text: &str| KeyValue {
            kind: Kind::Text,
            source: Source::Constant(text.into()),
            chars_max: Some(3),
        };
        let encode =
            |text| RowKey::new(smallvec::smallvec![value(text)], true).encode(&Values::of_text(""));
        assert_eq!(encode("äöü"), encoded("äöü"));
        assert_eq!(encode("abc "), None);
    }

    #[test]
    fn columns_of_a_key_do_not_run_into_each_other() {
        let key = |values: &[&str]| {
            let mut key = EncodedKey::default();
            values.iter().for_each(|value| key.push(value));
            key
        };
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a", ""]), key(&["a"]));
    }
}
