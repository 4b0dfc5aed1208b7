//! Recorded requests, read from files in the formats of those who published them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Requests for objects numbered densely in the order of their first appearance.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) name: String,
    pub(super) requests: Vec<u32>,
    /// By object; all 1 where the trace knows no sizes.
    pub(super) sizes: Vec<u32>,
    /// What a miss costs, in microseconds, by object.
    pub(super) costs: Vec<f32>,
    pub(super) is_weighted: bool,
}

impl Trace {
    /// The sum of the sizes of the distinct objects: their number where the trace knows no sizes.
    pub(super) fn total_size(&self) -> u64 {
        self.sizes.iter().map(|&size| u64::from(size)).sum()
    }

    /// The same requests, for objects with sizes and costs drawn from their numbers.
    pub(super) fn with_costs(&self, relation: Relation) -> Self {
        let objects = 0..u64::try_from(self.sizes.len()).unwrap_or(u64::MAX);
        let fraction = |seed: u64| (mix(seed) >> 11) as f64 / (1u64 << 53) as f64;
        let mut sizes = Vec::with_capacity(self.sizes.len());
        let mut costs = Vec::with_capacity(self.sizes.len());
        for object in objects {
            let (by_size, by_cost) = (fraction(2 * object), fraction(2 * object + 1));
            let by_cost = match relation {
                Relation::Correlated => 0.75 * by_size + 0.25 * by_cost,
                Relation::Independent => by_cost,
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 100 to 65536"
            )]
            sizes.push(log_uniform(100.0, 65_536.0, by_size) as u32);
            #[expect(clippy::cast_possible_truncation, reason = "the precision is enough")]
            costs.push(log_uniform(50.0, 500_000.0, by_cost) as f32);
        }
        Self {
            name: format!("{}+{relation:?}", self.name).to_lowercase(),
            requests: self.requests.clone(),
            sizes,
            costs,
            is_weighted: true,
        }
    }
}

/// How the drawn cost of an object relates to its drawn size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Correlated,
    Independent,
}

/// The traces in `folder`, by name, without reading them.
pub(super) fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if ["gz", "xz", "zst"].iter().any(|&end| has_end(&path, end)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The file's name up to its first dot.
pub(super) fn name(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.split('.').next()).unwrap_or("")
}

pub(super) fn read(path: &Path) -> anyhow::Result<Trace> {
    let bytes = decompress(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = name(path);
    let mut objects = Objects::default();
    match name {
        "corda" => read_words::<8>(&bytes, |word| {
            objects.push(u64::from_be_bytes(word), 1);
        }),
        _ if name.starts_with("arc_") => read_ranges(&bytes, &mut objects)?,
        _ if name.starts_with("lirs_") => {
            for line in String::from_utf8_lossy(&bytes).lines() {
                if let Ok(key) = line.trim().parse() {
                    objects.push(key, 1);
                }
            }
        }
        "request" => read_sized(&bytes, &mut objects)?,
        _ => read_words::<4>(&bytes, |word| {
            objects.push(u64::from(u32::from_be_bytes(word)), 1);
        }),
    }
    Ok(Trace {
        name: name.to_owned(),
        costs: vec![1.0; objects.sizes.len()],
        is_weighted: name == "request",
        requests: objects.requests,
        sizes: objects.sizes,
    })
}

#[derive(Debug, Default)]
struct Objects {
    numbers: HashMap<u64, u32>,
    requests: Vec<u32>,
    sizes: Vec<u32>,
}

impl Objects {
    fn push(&mut self, key: u64, size: u32) {
        let next = u32::try_from(self.sizes.len()).expect("fewer than 2^32 objects");
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            // An object keeps the size it was first seen with.
            self.sizes.push(size.max(1));
        }
        self.requests.push(number);
    }
}

/// A line: `first count ignored number`.
fn read_ranges(bytes: &[u8], objects: &mut Objects) -> anyhow::Result<()> {
    for line in std::str::from_utf8(bytes)?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(first), Some(count)) = (fields.next(), fields.next()) else {
            bail!("a line lacks its first two numbers: {line:?}");
        };
        let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
        for key in first..first.saturating_add(count) {
            objects.push(key, 1);
        }
    }
    Ok(())
}

/// A line: `time key size`.
fn read_sized(bytes: &[u8], objects: &mut Objects) -> anyhow::Result<()> {
    for line in std::str::from_utf8(bytes)?.lines() {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(key), Some(size)) = (fields.next(), fields.next()) else {
            bail!("a line lacks its second or third number: {line:?}");
        };
        objects.push(key.parse()?, size.parse()?);
    }
    Ok(())
}

fn read_words<const N: usize>(bytes: &[u8], mut push: impl FnMut([u8; N])) {
    for word in bytes.as_chunks::<N>().0 {
        push(*word);
    }
}

fn decompress(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = BufReader::new(File::open(path)?);
    let mut bytes = Vec::new();
    if has_end(path, "gz") {
        flate2::bufread::MultiGzDecoder::new(file).read_to_end(&mut bytes)?;
    } else if has_end(path, "xz") {
        liblzma::bufread::XzDecoder::new_multi_decoder(file).read_to_end(&mut bytes)?;
    } else {
        zstd::Decoder::with_buffer(file)?.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn has_end(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|extension| extension == end)
}

fn log_uniform(low: f64, high: f64, fraction: f64) -> f64 {
    low * (high / low).powf(fraction)
}

/// A well mixed image of `value` (splitmix64).
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
